//! The definition of quantization in 64-bit arithmetic, which the kernels are compared with.

use crate::tensor::fp8::{Fp8Format, ScaleType};

/// Bits of the mantissa, and the exponent of the smallest normal number.
fn parts(format: Fp8Format) -> (i32, i32) {
    match format {
        Fp8Format::E4m3 => (3, -6),
        Fp8Format::E5m2 => (2, -14),
    }
}

/// The number that a code stands for.
pub fn decode(code: u8, format: Fp8Format) -> f64 {
    let (mantissa, least) = parts(format);
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let size = i32::from(code & 0x7f);
    let (exponent, fraction) = (size >> mantissa, f64::from(size & ((1 << mantissa) - 1)));
    let steps = fraction / f64::from(1 << mantissa);
    match (format, size) {
        (Fp8Format::E4m3, 0x7f) => f64::NAN,
        (Fp8Format::E5m2, 0x7c) => sign * f64::INFINITY,
        (Fp8Format::E5m2, 0x7d..) => f64::NAN,
        _ if exponent == 0 => sign * steps * 2f64.powi(least),
        _ => sign * (1.0 + steps) * 2f64.powi(exponent - 1 + least),
    }
}

/// The nearest code; of two, the even one. Larger numbers become the largest finite one.
pub fn encode(number: f32, format: Fp8Format) -> u8 {
    if number.is_nan() {
        return 0x7f;
    }
    let (mantissa, least) = parts(format);
    let size = f64::from(number).abs().min(f64::from(format.max()));
    let exponent = if size == 0.0 { least } else { (size.to_bits() >> 52) as i32 - 1023 };
    let step = 2f64.powi(exponent.max(least) - mantissa);
    let rounded = (size / step).round_ties_even() * step;
    // Rounding can reach the next power of two.
    let exponent = (rounded.to_bits() >> 52) as i32 - 1023;
    let code = if rounded < 2f64.powi(least) {
        rounded / 2f64.powi(least - mantissa)
    } else {
        let steps = (rounded / 2f64.powi(exponent) - 1.0) * 2f64.powi(mantissa);
        f64::from((exponent - least + 1) << mantissa) + steps
    };
    code as u8 | if number.is_sign_negative() { 0x80 } else { 0 }
}

/// A block's scale, from its largest magnitude: as it is stored, and as a number.
pub fn scale(largest: f32, format: Fp8Format, kind: ScaleType) -> (u32, f32) {
    let scale = match largest {
        0.0 => 1.0,
        _ => (largest / format.max()).max(f32::MIN_POSITIVE),
    };
    match kind {
        ScaleType::F32 => (scale.to_bits(), scale),
        ScaleType::E8m0 => {
            let exponent = (-126..=127).find(|exponent| 2f64.powi(*exponent) >= f64::from(scale));
            let exponent = exponent.unwrap();
            ((exponent + 127) as u32, 2f64.powi(exponent) as f32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_code_is_encoded_from_its_number() {
        for format in [Fp8Format::E4m3, Fp8Format::E5m2] {
            let finite = (0..=u8::MAX).filter(|code| decode(*code, format).is_finite());
            for code in finite {
                assert_eq!(encode(decode(code, format) as f32, format), code, "{format:?}");
            }
        }
    }
}
