//! Safetensors files: tensors by name and index over one buffer.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::ops::{Deref, Range};
use std::path::Path;
use std::ptr;

use once_cell::race::OnceBox;

use crate::capi::arguments::Output;
use crate::capi::buffer::handle::wb_buffer;
use crate::capi::buffer::options::{BufferRequest, wb_buffer_options};
use crate::capi::call::{call, call_value, release, retain};
use crate::capi::device::handle::wb_device;
use crate::capi::enumeration::c_enum;
use crate::capi::error::wb_error;
use crate::capi::handle::{give, opaque, take};
use crate::capi::parameter::wb_parameter;
use crate::capi::structs::{CStruct, c_struct, check_elements};
use crate::capi::view::handle::wb_view;
use crate::capi::view::layout::{block_of, layout_to_c, wb_accessor, wb_layout};
use crate::device::device::Device;
use crate::error::{Result, fail};
use crate::memory::safetensors_file::SafetensorsFile;
use crate::memory::view::Accessor;
use crate::os::sync::Arc;
use crate::plan::grouping::Grouping;
use crate::status::{
    WB_ERR_INVALID_ARGUMENT, WB_ERR_NOT_SUPPORTED, WB_ERR_OUT_OF_RANGE, wb_status,
};
use crate::tensor::dtype::wb_dtype;
use crate::tensor::safetensors::Tensor;

/// An open safetensors file.
pub struct wb_safetensors {
    _opaque: [u8; 0],
}

opaque!(wb_safetensors, CSafetensors);

/// A file, and its tensors as parameters, which C reads. Making those takes no lock, which in a
/// forked child might be held forever.
pub struct CSafetensors {
    file: Arc<SafetensorsFile>,
    /// C's reference to the file's buffer, as an address.
    buffer: usize,
    layouts: OnceBox<Layouts>,
    /// For each [`Grouping`].
    groups: [OnceBox<Groups>; 2],
}

/// The layout of each tensor.
struct Layouts(Vec<wb_layout>);
// SAFETY: the structs point to shapes and names that live as long as the file, and are only read.
unsafe impl Send for Layouts {}
// SAFETY: as above.
unsafe impl Sync for Layouts {}

/// The names of the groups, each once, and the one of each tensor.
#[derive(Default)]
struct Groups {
    names: Vec<CString>,
    of: Vec<u32>,
}

impl Deref for CSafetensors {
    type Target = SafetensorsFile;

    fn deref(&self) -> &SafetensorsFile {
        &self.file
    }
}

impl Drop for CSafetensors {
    fn drop(&mut self) {
        // SAFETY: `new` gave the reference, which no call uses after the file's last one is dropped.
        drop(unsafe { take(self.buffer as *const wb_buffer) });
    }
}

impl CSafetensors {
    fn new(file: Arc<SafetensorsFile>) -> Arc<Self> {
        let buffer = give::<wb_buffer>(file.buffer().clone()) as usize;
        let groups = [OnceBox::new(), OnceBox::new()];
        Arc::new(Self { file, buffer, layouts: OnceBox::new(), groups })
    }

    fn layouts(&self) -> &[wb_layout] {
        let layout = |tensor: &Tensor| match &tensor.layout {
            Some(layout) => layout_to_c(layout),
            None => CStruct::init(),
        };
        let all = || Box::new(Layouts(self.tensors().iter().map(layout).collect()));
        &self.layouts.get_or_init(all).0
    }

    fn groups(&self, grouping: Grouping) -> &Groups {
        self.groups[grouping as usize].get_or_init(|| {
            let (mut groups, mut known) = (Groups::default(), HashMap::new());
            for tensor in self.tensors() {
                let group = grouping.group_of(tensor.name());
                let next = groups.names.len() as u32;
                let at = *known.entry(group).or_insert(next);
                if at == next {
                    // A part of a name without NUL.
                    groups.names.push(CString::new(group).unwrap_or_default());
                }
                groups.of.push(at);
            }
            Box::new(groups)
        })
    }

    /// The indexes of `count` tensors from index `first` on.
    fn range(&self, first: u64, count: u64) -> Result<Range<usize>> {
        let all = self.tensors().len();
        match first.checked_add(count).filter(|end| *end <= all as u64) {
            Some(end) => Ok(first as usize..end as usize),
            None => fail!(
                WB_ERR_OUT_OF_RANGE,
                "asked for {count} tensors from tensor {first} on; the file has {all}"
            ),
        }
    }

    /// `count` tensors from index `first` on, as parameters.
    fn parameters(&self, grouping: Grouping, first: u64, count: u64) -> Result<Vec<wb_parameter>> {
        let range = self.range(first, count)?;
        self.file.buffer().check_file()?;
        let (layouts, groups) = (self.layouts(), self.groups(grouping));
        let start = self.file.buffer().data().start();
        let parameter = |at: usize| {
            let tensor = &self.tensors()[at];
            if tensor.layout.is_none() {
                fail!(
                    WB_ERR_NOT_SUPPORTED,
                    "{:?} of type {} has rows that are not whole bytes, which no layout can express: \
                     leave it out",
                    tensor.name(),
                    tensor.file_dtype
                );
            }
            Ok(wb_parameter {
                name: tensor.c_name().as_ptr(),
                group: groups.names[groups.of[at] as usize].as_ptr(),
                layout: &raw const layouts[at],
                source: (start + tensor.offset as usize) as *const c_void,
                encoded_bytes: tensor.encoded_bytes(),
                buffer: self.buffer as *const wb_buffer,
                ..CStruct::init()
            })
        };
        range.map(parameter).collect()
    }
}

/// An array of texts, and how many there are.
struct Names(*mut *const c_char, u64);

impl Output for Names {
    type Value = Vec<*const c_char>;

    unsafe fn check(&self, name: &str) -> Result<()> {
        if self.0.is_null() && self.1 > 0 {
            fail!(WB_ERR_INVALID_ARGUMENT, "the output {name} is NULL");
        }
        Ok(())
    }

    unsafe fn store(self, names: Vec<*const c_char>) {
        for (at, name) in names.into_iter().enumerate() {
            // SAFETY: the contract of mod.rs: the array has as many elements as were asked for.
            unsafe { *self.0.add(at) = name };
        }
    }
}

/// Properties of a tensor of a file.
#[repr(C)]
pub struct wb_safetensors_tensor_info {
    /// Size of the struct.
    pub struct_size: u32,
    /// The element type; WB_DTYPE_OPAQUE for a type that has no other WB_DTYPE_*, and 0 if its rows
    /// are not whole bytes.
    pub dtype: wb_dtype,
    /// Number of dimensions.
    pub ndim: i32,
    /// Zero.
    pub reserved0: u32,
    /// The name.
    pub name: *const c_char,
    /// `ndim` sizes in elements; NULL if dtype is 0.
    pub shape: *const i64,
    /// Bytes from the start of the file, and of its buffer.
    pub offset_bytes: u64,
    /// Bytes of the data.
    pub bytes: u64,
    /// The type's name, such as "bfloat16"; of a WB_DTYPE_OPAQUE the one in the file. NULL if dtype
    /// is 0.
    pub dtype_name: *const c_char,
    /// Elements of a block of a WB_DTYPE_OPAQUE, otherwise 0.
    pub block_elements: u32,
    /// Bytes of a block of a WB_DTYPE_OPAQUE, otherwise 0.
    pub block_bytes: u32,
    /// `bytes` if they are the values compressed, as `python -m weighbridge compress` writes them;
    /// type and shape are then those of the values. Otherwise 0.
    pub encoded_bytes: u64,
}

c_struct!(wb_safetensors_tensor_info);

/// Which part of a tensor's name is the name of its group.
pub type wb_grouping = i32;
/// Up to the first segment that is a number, as "model.layers.3"; without one, as
/// WB_GROUPING_MODULE. The default.
pub const WB_GROUPING_LAYER: wb_grouping = 0;
/// All but the last segment, as "model.layers.3.mlp.up_proj".
pub const WB_GROUPING_MODULE: wb_grouping = 1;

c_enum!(Grouping {
    WB_GROUPING_LAYER => Layer,
    WB_GROUPING_MODULE => Module,
});

/// Opens a safetensors file: checks its header and maps the whole file as wb_buffer_map_file does.
/// Fails with WB_ERR_FORMAT or WB_ERR_FILE_TRUNCATED, with WB_ERR_NOT_SUPPORTED for compressed
/// values in a later format, and as wb_buffer_map_file does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_open(
    device: *const wb_device,
    path: *const c_char,
    options: *const wb_buffer_options,
    file: *mut *mut wb_safetensors,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |device: Arc<Device>, path: &Path, options: BufferRequest| -> file {
        let open = options
            .run(|options, progress| SafetensorsFile::open(&device, path, options, progress));
        open.map(CSafetensors::new)
    })
}

/// Adds a reference.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_retain(file: *const wb_safetensors) {
    retain!(file)
}

/// Drops a reference. Views hold the buffer, not the file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_release(file: *mut wb_safetensors) {
    release!(file)
}

/// Returns the number of tensors, which are in the order of their data, or 0 if `file` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_tensor_count(file: *const wb_safetensors) -> u64 {
    call_value!(0, |file: &CSafetensors| file.tensors().len() as u64)
}

/// Returns the JSON text of the header, with the file's metadata, or NULL if `file` is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_header(file: *const wb_safetensors) -> *const c_char {
    call_value!(ptr::null(), |file: &CSafetensors| file.json().as_ptr())
}

/// Fills `info` with the properties of tensor `index`. Fails with WB_ERR_OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_tensor_info(
    file: *const wb_safetensors,
    index: u64,
    info: *mut wb_safetensors_tensor_info,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |file: &CSafetensors| -> info {
        file.tensor(index).map(|tensor| {
            let info = wb_safetensors_tensor_info {
                name: tensor.c_name().as_ptr(),
                offset_bytes: tensor.offset,
                bytes: tensor.bytes,
                encoded_bytes: tensor.encoded_bytes(),
                ..CStruct::init()
            };
            let Some(layout) = &tensor.layout else { return info };
            let (block_elements, block_bytes) = block_of(layout.dtype());
            wb_safetensors_tensor_info {
                dtype: layout.dtype().code(),
                ndim: layout.ndim() as i32,
                shape: layout.shape().as_ptr(),
                dtype_name: layout.dtype().c_name().as_ptr(),
                block_elements,
                block_bytes,
                ..info
            }
        })
    })
}

/// Fills an array of `count` texts with the names of the tensors from index `first` on. They live
/// as long as the file. Fails with WB_ERR_OUT_OF_RANGE if there are fewer tensors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_names(
    file: *const wb_safetensors,
    first: u64,
    count: u64,
    names: *mut *const c_char,
    error: *mut wb_error,
) -> wb_status {
    let names = Names(names, count);
    call!(error, |file: &CSafetensors| -> names {
        let range = file.range(first, count)?;
        Ok(range.map(|at| file.tensors()[at].c_name().as_ptr()).collect())
    })
}

/// Gets the index of the tensor with a name. Fails with WB_ERR_NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_find_tensor(
    file: *const wb_safetensors,
    name: *const c_char,
    index: *mut u64,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |file: &CSafetensors, name: &str| -> index { file.find(name) })
}

/// Fills an array of `count` structs, each initialized, with the tensors from index `first` on as
/// parameters of a plan, of which the caller may then change fields: the group that `grouping`
/// gives, dense, with all choices left to the plan. A type without WB_DTYPE_* is opaque. Those of a
/// file that `python -m weighbridge compress` wrote have the type and shape of their values, and
/// `encoded_bytes`.
///
/// What the structs point to lives as long as the file. wb_plan_new copies it and keeps the file's
/// buffer, where the sources are, so the file may be released then. Open a file that is only a
/// source with WB_FILE_MODE_SOURCE. Fails with WB_ERR_OUT_OF_RANGE if there are fewer tensors, with
/// WB_ERR_NOT_SUPPORTED for one whose rows are not whole bytes, and with WB_ERR_FILE_TRUNCATED.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_parameters(
    file: *const wb_safetensors,
    grouping: wb_grouping,
    first: u64,
    count: u64,
    parameters: *mut wb_parameter,
    error: *mut wb_error,
) -> wb_status {
    let parameters = (parameters, count);
    call!(error, |file: &CSafetensors, grouping: Grouping| -> parameters {
        let found = file.parameters(grouping, first, count)?;
        // SAFETY: the contract of mod.rs: the array has `count` structs.
        unsafe { check_elements(parameters.0, count, "parameters") }?;
        Ok(found)
    })
}

/// Creates a view of a tensor in the file's buffer, without a copy. Fails with WB_ERR_UNALIGNED
/// unless its address is a multiple of `alignment` bytes (0 or 1 for any), with
/// WB_ERR_NOT_SUPPORTED for a type without WB_DTYPE_* and for compressed values, and as wb_view_new
/// does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_view(
    file: *const wb_safetensors,
    index: u64,
    accessor: wb_accessor,
    alignment: u64,
    view: *mut *mut wb_view,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |file: &CSafetensors, accessor: Accessor| -> view {
        file.view(index, accessor, alignment)
    })
}

/// As wb_safetensors_get_view, but copies a tensor that is not aligned into memory of its own, for
/// which `options` are; `copied` receives 1 for a copy, otherwise 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_load_view(
    file: *const wb_safetensors,
    index: u64,
    accessor: wb_accessor,
    alignment: u64,
    options: *const wb_buffer_options,
    view: *mut *mut wb_view,
    copied: *mut i32,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |file: &CSafetensors,
                  accessor: Accessor,
                  options: BufferRequest|
     -> (view, copied) {
        options.run(|options, progress| {
            let (view, copied) = file.load(index, accessor, alignment, options, progress)?;
            Ok((view, copied.into()))
        })
    })
}

/// Gets the buffer over the whole file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_safetensors_get_buffer(
    file: *const wb_safetensors,
    buffer: *mut *mut wb_buffer,
    error: *mut wb_error,
) -> wb_status {
    call!(error, |file: &CSafetensors| -> buffer { Ok(file.buffer().clone()) })
}
