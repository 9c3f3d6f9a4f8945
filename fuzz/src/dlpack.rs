//! Imports of DLPack tensors: arbitrary types, shapes, strides, offsets, devices, versions and flags over
//! memory between inaccessible pages.

use std::ffi::c_void;
use std::ptr;
use std::sync::{LazyLock, Mutex};

use arbitrary::{Result, Unstructured};
use weighbridge::capi::buffer::wb_buffer_options;
use weighbridge::capi::device::WB_TRISTATE_OFF;
use weighbridge::capi::dlpack::{wb_view_from_dlpack, wb_view_from_dlpack_versioned};
use weighbridge::capi::view::{
    wb_view, wb_view_get_info, wb_view_info, wb_view_release, wb_view_retain,
};
use weighbridge::status::*;
use weighbridge::tensor::dlpack::*;

use crate::c;
use crate::memory::Guarded;
use crate::oracle::{self, DTYPE_BYTES};

/// Codes, bits and lanes of the supported types, in the order of their `WB_DTYPE_*`.
const TYPES: [(u8, u8, u16); 18] = [
    (6, 8, 1),
    (0, 8, 1),
    (0, 16, 1),
    (0, 32, 1),
    (0, 64, 1),
    (1, 8, 1),
    (1, 16, 1),
    (1, 32, 1),
    (1, 64, 1),
    (2, 16, 1),
    (4, 16, 1),
    (2, 32, 1),
    (2, 64, 1),
    (5, 64, 1),
    (10, 8, 1),
    (12, 8, 1),
    (14, 8, 1),
    (17, 4, 2),
];

/// A tensor to import.
struct Case {
    tensor: DLTensor,
    version: DLPackVersion,
    flags: u64,
    versioned: bool,
    has_deleter: bool,
    accessor: i32,
    shape: Vec<i64>,
    strides: Option<Vec<i64>>,
}

/// Decodes a tensor, imports it and releases it.
pub fn run(data: &[u8]) {
    static ARENA: LazyLock<Mutex<Guarded>> = LazyLock::new(|| Mutex::new(Guarded::new(8192)));
    let arena = ARENA.lock().expect("a failed case ends the process");
    if let Ok(mut case) = read(&mut Unstructured::new(data), &arena) {
        check(&mut case, &arena);
    }
}

fn read(u: &mut Unstructured<'_>, arena: &Guarded) -> Result<Case> {
    let (code, bits, lanes) = match u.ratio(1, 8)? {
        true => u.arbitrary()?,
        false => *u.choose(&TYPES)?,
    };
    let dims = match u.ratio(1, 16)? {
        true => u.int_in_range(4..=66)?,
        false => u.int_in_range(0..=4usize)?,
    };
    let wild = u.ratio(1, 6)?;
    let mut number = |low: i8, high: i8| -> Result<i64> {
        if wild && u.ratio(1, 3)? {
            u.arbitrary()
        } else {
            u.int_in_range(low..=high).map(i64::from)
        }
    };
    let shape = (0..dims).map(|_| number(0, 12)).collect::<Result<Vec<_>>>()?;
    let strides = (0..dims).map(|_| number(-20, 20)).collect::<Result<Vec<_>>>()?;
    let ndim = if u.ratio(1, 32)? { u.arbitrary()? } else { dims as i32 };
    // Every counted dimension has a size and a stride.
    let ndim = if (0..=64).contains(&ndim) { ndim.min(dims as i32) } else { ndim };
    let inside = u64::from(u.int_in_range::<u16>(0..=arena.bytes() as u16)?);
    let byte_offset = if u.ratio(1, 16)? { u.arbitrary()? } else { inside };
    let device_type = if u.ratio(1, 16)? { u.arbitrary()? } else { CPU };
    Ok(Case {
        tensor: DLTensor {
            data: if u.ratio(1, 32)? { ptr::null_mut() } else { arena.start() as *mut c_void },
            device: DLDevice { device_type, device_id: u.arbitrary()? },
            ndim,
            dtype: DLDataType { code, bits, lanes },
            shape: ptr::null_mut(),
            strides: ptr::null_mut(),
            byte_offset,
        },
        version: match u.ratio(1, 16)? {
            true => DLPackVersion { major: u.arbitrary()?, minor: u.arbitrary()? },
            false => DLPackVersion { major: 1, minor: u.int_in_range(0..=9)? },
        },
        flags: if u.arbitrary()? { u.arbitrary()? } else { 0 },
        versioned: u.arbitrary()?,
        has_deleter: !u.ratio(1, 16)?,
        accessor: if u.ratio(1, 32)? { u.arbitrary()? } else { u.int_in_range(0..=1)? },
        strides: u.arbitrary::<bool>()?.then_some(strides),
        shape,
    })
}

/// Imports the tensor, and counts the calls of its deleter.
fn check(case: &mut Case, arena: &Guarded) {
    case.tensor.shape = case.shape.as_mut_ptr();
    case.tensor.strides =
        case.strides.as_mut().map_or(ptr::null_mut(), |strides| strides.as_mut_ptr());
    let mut deleted = 0u32;
    let context = (&raw mut deleted).cast();
    // The memory outlives the import on the stack: the deleter counts and frees nothing.
    let mut old = DLManagedTensor {
        dl_tensor: case.tensor,
        manager_ctx: context,
        deleter: case.has_deleter.then_some(count_old as unsafe extern "C" fn(_)),
    };
    let mut new = DLManagedTensorVersioned {
        version: case.version,
        manager_ctx: context,
        deleter: case.has_deleter.then_some(count_new as unsafe extern "C" fn(_)),
        flags: case.flags,
        dl_tensor: case.tensor,
    };
    let device = c::host(true);
    // SAFETY: all pointers are valid; the library does not read the tensor's bytes.
    let made = unsafe {
        let mut options: wb_buffer_options = c::sized();
        options.pin = WB_TRISTATE_OFF;
        let (options, accessor) = (&raw const options, case.accessor);
        c::make(|view, error| match case.versioned {
            true => {
                wb_view_from_dlpack_versioned(device, &raw mut new, accessor, options, view, error)
            }
            false => wb_view_from_dlpack(device, &raw mut old, accessor, options, view, error),
        })
    };
    let count = || {
        // SAFETY: `deleted` is on this stack.
        unsafe { context.cast::<u32>().read() }
    };
    match made {
        Ok(view) => {
            check_view(case, view, arena);
            let bytes = extent(case).expect("an imported tensor has a valid layout").1;
            let early = u32::from(case.has_deleter && bytes == 0);
            assert_eq!(count(), early, "only an empty tensor is deleted while the view is alive");
            // SAFETY: this function owns the view.
            unsafe {
                wb_view_retain(view);
                wb_view_release(view);
                assert_eq!(count(), early);
                wb_view_release(view);
            }
            assert_eq!(count(), u32::from(case.has_deleter), "the deleter is called once");
        }
        Err(refused) => {
            assert_eq!(count(), 0, "on failure the caller keeps ownership: {refused:?}");
            let known =
                [WB_ERR_DLPACK, WB_ERR_INVALID_ARGUMENT, WB_ERR_OVERFLOW, WB_ERR_UNMAPPED_RANGE];
            assert!(known.contains(&refused.status), "{refused:?}");
            assert!(!must_succeed(case, arena), "{refused:?}");
        }
    }
    c::check_nothing_left(device);
}

unsafe extern "C" fn count_old(tensor: *mut DLManagedTensor) {
    // SAFETY: the context is the counter.
    unsafe { *(*tensor).manager_ctx.cast::<u32>() += 1 };
}

unsafe extern "C" fn count_new(tensor: *mut DLManagedTensorVersioned) {
    // SAFETY: the context is the counter.
    unsafe { *(*tensor).manager_ctx.cast::<u32>() += 1 };
}

/// The `WB_DTYPE_*` of the tensor's type.
fn dtype(case: &Case) -> Option<usize> {
    let DLDataType { code, bits, lanes } = case.tensor.dtype;
    TYPES.iter().position(|known| *known == (code, bits, lanes)).map(|at| at + 1)
}

/// Bytes before the first element, and total bytes.
fn extent(case: &Case) -> Option<(u64, u64)> {
    let dims = usize::try_from(case.tensor.ndim).ok().filter(|dims| *dims <= 64)?;
    let strides = case.strides.as_ref().map(|strides| &strides[..dims]);
    oracle::extent(DTYPE_BYTES[dtype(case)? - 1], &case.shape[..dims], strides)
}

/// The addresses of its bytes.
fn range(case: &Case) -> Option<(i128, i128)> {
    let (before, span) = extent(case)?;
    let first = case.tensor.data as i128 + i128::from(case.tensor.byte_offset);
    let start = first - i128::from(before);
    Some((start, start + i128::from(span)))
}

fn must_succeed(case: &Case, arena: &Guarded) -> bool {
    let fits = range(case).is_some_and(|(start, end)| {
        start == end || (start >= i128::from(arena.start()) && end <= i128::from(arena.end()))
    });
    let (cpu, version) = (case.tensor.device.device_type == CPU, case.version.major == 1);
    let no_data = case.tensor.data.is_null();
    let accessor = (0..=1).contains(&case.accessor);
    fits && cpu && !no_data && accessor && (version || !case.versioned)
}

fn check_view(case: &Case, view: *const wb_view, arena: &Guarded) {
    assert_eq!(case.tensor.device.device_type, CPU);
    assert!(!case.versioned || case.version.major == 1);
    let (start, end) = range(case).expect("an imported tensor has a valid layout");
    // SAFETY: the view is alive.
    let info = unsafe {
        let mut info: wb_view_info = c::sized();
        c::call(|error| wb_view_get_info(view, &raw mut info, error)).expect("it has an info");
        info
    };
    assert_eq!(info.dtype as usize, dtype(case).expect("it has a dtype"));
    assert_eq!(i128::from(info.span_bytes), end - start);
    if start == end {
        return;
    }
    let read_only = case.versioned && case.flags & FLAG_READ_ONLY != 0;
    let first = case.tensor.data as u64 + case.tensor.byte_offset;
    assert_eq!(info.data as u64, first);
    let (low, high) = (i128::from(arena.start()), i128::from(arena.end()));
    let touches = start < high + 4096 && end > low - 4096;
    assert!(!touches || (start >= low && end <= high), "it exceeds the tensor's memory");
    assert!(!touches || (info.read_only != 0) == read_only);
}
