//! The codec: compressed bytes that are damaged in places, truncated, or arbitrary, in memory that ends
//! before an inaccessible page, as are the decoded values.

use std::ffi::c_void;
use std::ptr;
use std::sync::{LazyLock, Mutex};

use arbitrary::{Result, Unstructured};
use weighbridge::capi::codec::*;
use weighbridge::capi::device::{wb_device, wb_device_stream_synchronize};
use weighbridge::capi::offloader::*;
use weighbridge::capi::parameter::*;
use weighbridge::capi::plan::*;
use weighbridge::status::*;
use weighbridge::tensor::dtype::*;

use crate::c::{self, Refused};
use crate::memory::Guarded;

const TYPES: [(wb_dtype, usize); 5] = [
    (WB_DTYPE_BF16, 2),
    (WB_DTYPE_F16, 2),
    (WB_DTYPE_F32, 4),
    (WB_DTYPE_F8_E4M3FN, 1),
    (WB_DTYPE_F8_E5M2, 1),
];
const TILE: usize = WB_CODEC_TILE_BYTES as usize;
/// Values of a case, and memory for them compressed.
const MOST: usize = 3 * TILE;
const CAPACITY: usize = 1 << 15;

/// Memory that all cases share.
struct Shared {
    encoded: Guarded,
    decoded: Guarded,
}

/// Changes of compressed bytes.
struct Damage {
    /// Bytes that are replaced: where, and by what.
    patches: Vec<(u16, u8)>,
    /// Bytes that are left.
    kept: Option<u16>,
}

/// The bytes decide which values are compressed, and how the result is damaged.
pub fn run(data: &[u8]) {
    static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(|| {
        Mutex::new(Shared { encoded: Guarded::new(CAPACITY), decoded: Guarded::new(CAPACITY) })
    });
    let mut input = Unstructured::new(data);
    let Ok((at, values, damage)) = case(&mut input) else { return };
    let shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let encoded = encode(TYPES[at].0, &values);
    check(&shared, TYPES[at].0, &encoded, &values, &encoded);
    let mut damaged = encoded.clone();
    for (place, byte) in &damage.patches {
        // The header and the directory are damaged as often as all the rest.
        let reach = if place % 2 == 0 { damaged.len() } else { damaged.len().min(112) };
        damaged[*place as usize / 2 % reach] = *byte;
    }
    if let Some(kept) = damage.kept {
        damaged.truncate(kept as usize % (damaged.len() + 1));
    }
    check(&shared, TYPES[at].0, &damaged, &values, &encoded);
}

/// The type's number in the table, values, and what is damaged.
fn case(input: &mut Unstructured<'_>) -> Result<(usize, Vec<u8>, Damage)> {
    let at = input.choose_index(TYPES.len())?;
    let size = TYPES[at].1;
    let count = input.int_in_range(0..=MOST / size)?;
    let (mut state, kind) = (input.arbitrary::<u32>()?, input.int_in_range(0..=4u8)?);
    let mut values = Vec::with_capacity(count * size);
    for index in 0..count {
        state = state.wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
        let random = state ^ state >> 15;
        // Mostly exponents of the middle of the range, whatever the type.
        let usual = 0x3c3c_3c3c ^ (random & 0x8383_8383);
        let bits = match kind {
            0 => 0,
            1 => random,
            2 => usual,
            3 if index * size / TILE == 1 => random,
            3 => usual,
            _ => random & 0x8000_8080,
        };
        values.extend(&bits.to_le_bytes()[..size]);
    }
    let damage = Damage { patches: input.arbitrary()?, kept: input.arbitrary()? };
    Ok((at, values, damage))
}

fn encode(dtype: wb_dtype, values: &[u8]) -> Vec<u8> {
    let mut most = 0;
    let bytes = values.len() as u64;
    // SAFETY: all pointers are valid.
    c::call(|error| unsafe { wb_codec_get_max_bytes(dtype, bytes, &raw mut most, error) })
        .expect("whole values");
    let mut encoded = vec![0xa5u8; most as usize];
    // SAFETY: a struct of the interface.
    let mut info: wb_codec_info = unsafe { c::sized() };
    let (from, to) = (values.as_ptr().cast::<c_void>(), encoded.as_mut_ptr().cast::<c_void>());
    // SAFETY: the memory is as large as the call says.
    c::call(|error| unsafe {
        wb_codec_encode(dtype, from, bytes, to, most, 1, &raw mut info, error)
    })
    .expect("values are compressed");
    assert!(info.encoded_bytes <= most && info.decoded_bytes == bytes);
    encoded.truncate(info.encoded_bytes as usize);
    encoded
}

/// Decodes bytes, which must give the values or be refused; undamaged ones must not be. A directory
/// that is damaged may have the checksums of other values.
fn check(shared: &Shared, dtype: wb_dtype, encoded: &[u8], values: &[u8], undamaged: &[u8]) {
    let listed = 64 + 16 * values.len().div_ceil(TILE);
    let is_listed = encoded.get(..listed) == undamaged.get(..listed);
    let (from, bytes) = (place(&shared.encoded, encoded), encoded.len() as u64);
    let to = ptr::with_exposed_provenance_mut::<c_void>(
        shared.decoded.last(values.len() as u64) as usize
    );
    // SAFETY: a struct of the interface.
    let mut info: wb_codec_info = unsafe { c::sized() };
    // SAFETY: the memory is as large as the call says.
    let known = c::call(|error| unsafe { wb_codec_get_info(from, bytes, &raw mut info, error) });
    let count = values.len() as u64;
    // SAFETY: the memory is as large as the call says.
    let decoded = c::call(|error| unsafe {
        wb_codec_decode(from, bytes, 0, to, count, 1, 1, ptr::null_mut(), error)
    });
    match decoded {
        Ok(()) => {
            // Header and directory may tell of more values than were asked for, of another type.
            assert!(known.is_ok() && info.decoded_bytes >= count);
            // SAFETY: the call has written the bytes.
            let found = unsafe { std::slice::from_raw_parts(to.cast::<u8>(), values.len()) };
            assert!(!is_listed || found == values, "damage is not found");
        }
        Err(Refused { status, message }) => {
            assert!(encoded != undamaged, "undamaged bytes are refused: {message}");
            let statuses = [WB_ERR_DAMAGED, WB_ERR_INVALID_ARGUMENT, WB_ERR_UNALIGNED];
            assert!(statuses.contains(&status), "status {status}: {message}");
        }
    }
    queue(shared, dtype, encoded, values);
    for carried in [false, true] {
        commit(shared, dtype, (encoded, carried), values, undamaged);
    }
}

/// Commits a parameter with these bytes as its source, carried as they are or decoded: they are refused, or give
/// the values; nothing outside of them is accessed.
fn commit(
    shared: &Shared,
    dtype: wb_dtype,
    (encoded, carried): (&[u8], bool),
    values: &[u8],
    undamaged: &[u8],
) {
    if encoded.is_empty() || values.is_empty() {
        return;
    }
    let device: *mut wb_device = c::host(true);
    let start = (shared.encoded.last(encoded.len() as u64) & !15) as usize;
    let source = ptr::with_exposed_provenance_mut::<c_void>(start);
    // SAFETY: the memory has as many bytes.
    unsafe { ptr::copy(encoded.as_ptr(), source.cast(), encoded.len()) };
    let size = TYPES.iter().find(|(code, _)| *code == dtype).map_or(1, |(_, size)| *size);
    let shape = [(values.len() / size) as i64];
    let layout = c::layout(dtype, &shape, None, 0);
    let select = [c"*".as_ptr()];
    // SAFETY: structs of the interface.
    let (empty, defaults): (wb_parameter, wb_plan_options) = unsafe { (c::sized(), c::sized()) };
    let parameter = wb_parameter {
        name: c"w".as_ptr(),
        group: c"g".as_ptr(),
        layout: &raw const layout,
        source,
        encoded_bytes: encoded.len() as u64,
        ..empty
    };
    let options = wb_plan_options {
        budget_kind: WB_BUDGET_OFFLOAD_BYTES,
        budget_bytes: 1 << 20,
        transfer_mode: WB_TRANSFER_MODE_PREFETCH,
        compress: if carried { WB_COMPRESS_SELECTED } else { WB_COMPRESS_OFF },
        compress_select: select.as_ptr(),
        compress_select_count: u32::from(carried),
        ..defaults
    };
    // SAFETY: all pointers are valid, and the source has as many bytes.
    let made = c::make(|plan, error| unsafe {
        wb_plan_new(device, &raw const parameter, 1, &raw const options, plan, error)
    });
    let refused = match made {
        Err(refused) => Some(refused),
        Ok(plan) => {
            // SAFETY: as above.
            let made = c::make(|offloader, error| unsafe {
                wb_offloader_new(plan, ptr::null_mut(), ptr::null(), offloader, error)
            });
            // SAFETY: the plan is alive.
            unsafe { wb_plan_release(plan) };
            match made {
                Err(refused) => Some(refused),
                Ok(offloader) => {
                    let mut found = vec![0u8; values.len()];
                    let (to, bytes) = (found.as_mut_ptr().cast(), found.len() as u64);
                    // SAFETY: the memory has as many bytes.
                    let read = c::call(|error| unsafe {
                        wb_offloader_read_parameter(offloader, 0, to, bytes, error)
                    });
                    let listed = 64 + 16 * values.len().div_ceil(TILE);
                    let is_listed = encoded.get(..listed) == undamaged.get(..listed);
                    assert!(read.is_err() || !is_listed || found == values, "damage is not found");
                    // SAFETY: the offloader is alive.
                    unsafe { wb_offloader_release(offloader) };
                    read.err()
                }
            }
        }
    };
    if let Some(Refused { status, message }) = refused {
        assert!(encoded != undamaged, "an undamaged source is refused: {message}");
        let statuses = [WB_ERR_DAMAGED, WB_ERR_INVALID_ARGUMENT];
        assert!(statuses.contains(&status), "status {status}: {message}");
    }
}

/// Decodes unchecked bytes as a device does: nothing outside of the memory is accessed.
fn queue(shared: &Shared, dtype: wb_dtype, encoded: &[u8], values: &[u8]) {
    let device: *mut wb_device = c::host(true);
    // At a multiple of 16, and so up to 15 bytes before the end.
    let start = shared.encoded.last(encoded.len() as u64) & !15;
    let target = shared.decoded.last(values.len() as u64) & !15;
    let [from, to] =
        [start, target].map(|at| ptr::with_exposed_provenance_mut::<c_void>(at as usize));
    // SAFETY: the memory has as many bytes.
    unsafe { ptr::copy(encoded.as_ptr(), from.cast(), encoded.len()) };
    let (available, count) = (encoded.len() as u64, values.len() as u64);
    // SAFETY: the memory is as large as the call says, and the stream is waited for.
    let queued = c::call(|error| unsafe {
        wb_codec_queue_decode(
            device,
            dtype,
            from,
            available,
            count,
            0,
            to,
            count,
            ptr::null_mut(),
            error,
        )
    });
    assert!(queued.is_ok() || encoded.len() < 64 + 16 * values.len().div_ceil(TILE));
    // SAFETY: the device is alive.
    c::call(|error| unsafe { wb_device_stream_synchronize(device, ptr::null_mut(), error) })
        .expect("the stream is the device's");
}

/// Copies bytes to the end of guarded memory.
fn place(memory: &Guarded, bytes: &[u8]) -> *mut c_void {
    let at = ptr::with_exposed_provenance_mut::<c_void>(memory.last(bytes.len() as u64) as usize);
    // SAFETY: the memory has as many bytes.
    unsafe { ptr::copy(bytes.as_ptr(), at.cast(), bytes.len()) };
    at
}
