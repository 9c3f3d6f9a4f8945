//! A safetensors file in memory: one buffer over the whole file, and its tensors by name.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::device::device::Device;
use crate::error::{Error, Result, fail};
use crate::memory::buffer::{Buffer, BufferOptions};
use crate::memory::file;
use crate::memory::view::{Accessor, View};
use crate::os::parallel::Progress;
use crate::os::sync::Arc;
use crate::status::{
    WB_ERR_FILE_IO, WB_ERR_FILE_TRUNCATED, WB_ERR_NOT_FOUND, WB_ERR_NOT_SUPPORTED,
    WB_ERR_OUT_OF_RANGE, WB_ERR_UNALIGNED,
};
use crate::tensor::layout::Layout;
use crate::tensor::safetensors;
use crate::tensor::safetensors::{Header, LENGTH_BYTES, Tensor, header_bytes};

/// An open safetensors file.
pub struct SafetensorsFile {
    buffer: Arc<Buffer>,
    header: Header,
    names: Vec<CString>,
    json: CString,
    index: HashMap<String, usize>,
}

impl SafetensorsFile {
    /// Reads and checks the header, then maps the file.
    pub fn open(
        device: &Arc<Device>,
        path: &Path,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Arc<Self>> {
        device.backend().check_process()?;
        let (file, length) = file::open(path)?;
        let header = read_header(&file, length).map_err(|error| Error {
            message: format!("{}: {}", path.display(), error.message),
            ..error
        })?;
        let buffer = Buffer::map_opened(device, file, 0, length, options, progress)?;
        let c_string = |text: &str| CString::new(text).unwrap_or_default();
        let tensors = &header.tensors;
        Ok(Arc::new(Self {
            names: tensors.iter().map(|tensor| c_string(&tensor.name)).collect(),
            index: tensors.iter().enumerate().map(|(at, t)| (t.name.clone(), at)).collect(),
            json: c_string(&header.json),
            buffer,
            header,
        }))
    }

    /// The buffer over the whole file.
    pub fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// The tensors, in the order of their data.
    pub fn tensors(&self) -> &[Tensor] {
        &self.header.tensors
    }

    /// The header's JSON text.
    pub fn json(&self) -> &CString {
        &self.json
    }

    /// The tensor at an index, with its name as C has it.
    pub fn tensor(&self, index: u64) -> Result<(&Tensor, &CString)> {
        let found = usize::try_from(index)
            .ok()
            .and_then(|at| Some((self.header.tensors.get(at)?, self.names.get(at)?)));
        found.ok_or_else(|| {
            let count = self.header.tensors.len();
            Error::new(WB_ERR_OUT_OF_RANGE, format!("asked for tensor {index} of {count}"))
        })
    }

    /// The index of a name.
    pub fn find(&self, name: &str) -> Result<u64> {
        match self.index.get(name) {
            Some(at) => Ok(*at as u64),
            None => fail!(
                WB_ERR_NOT_FOUND,
                "the file has no tensor {name:?} among its {}; wb_safetensors_get_tensor_info lists them",
                self.header.tensors.len()
            ),
        }
    }

    /// A view of a tensor where it lies. Fails where its address is no multiple of `alignment`.
    pub fn view(&self, index: u64, access: Accessor, alignment: u64) -> Result<Arc<View>> {
        let (tensor, layout) = self.with_layout(index)?;
        if !self.is_aligned(tensor, access, alignment) {
            fail!(
                WB_ERR_UNALIGNED,
                "{:?} lies at byte {} of the file, where its address is no multiple of \
                 {alignment}: ask for less, or use wb_safetensors_load_view, which copies",
                tensor.name,
                tensor.offset
            );
        }
        View::new(self.buffer.clone(), layout.clone(), tensor.offset, access)
    }

    /// A view of a tensor where it lies if it is aligned, else of a copy; and whether it is one.
    pub fn load(
        &self,
        index: u64,
        access: Accessor,
        alignment: u64,
        options: &BufferOptions,
        progress: &mut Progress<'_>,
    ) -> Result<(Arc<View>, bool)> {
        let (tensor, layout) = self.with_layout(index)?;
        if self.is_aligned(tensor, access, alignment) {
            return Ok((self.view(index, access, alignment)?, false));
        }
        self.buffer.check_file()?;
        let from = self.buffer.data().part(tensor.offset as usize, tensor.bytes as usize);
        let device = self.buffer.device();
        let view = View::copy_from(device, from, layout.clone(), access, options, progress)?;
        Ok((view, true))
    }

    fn with_layout(&self, index: u64) -> Result<(&Tensor, &Layout)> {
        let (tensor, _) = self.tensor(index)?;
        match &tensor.layout {
            Some(layout) => Ok((tensor, layout)),
            None => fail!(
                WB_ERR_NOT_SUPPORTED,
                "{:?} has type {}, or a shape that it cannot be packed in: there is no WB_DTYPE_* \
                 for it; view its bytes through wb_safetensors_get_buffer",
                tensor.name,
                tensor.file_dtype
            ),
        }
    }

    fn is_aligned(&self, tensor: &Tensor, access: Accessor, alignment: u64) -> bool {
        let base = match access {
            Accessor::Device => self.buffer.device_address().unwrap_or(0),
            Accessor::Host => self.buffer.data().start() as u64,
        };
        (base + tensor.offset).is_multiple_of(alignment.max(1))
    }
}

fn read_header(file: &File, length: u64) -> Result<Header> {
    if length < LENGTH_BYTES {
        fail!(WB_ERR_FILE_TRUNCATED, "{length} bytes are too few for a safetensors file");
    }
    let failed = |error: std::io::Error| {
        Error::system(WB_ERR_FILE_IO, "the header cannot be read", "pread", &error)
    };
    let mut prefix = [0; LENGTH_BYTES as usize];
    file.read_exact_at(&mut prefix, 0).map_err(failed)?;
    let mut json = vec![0; header_bytes(prefix, length)? as usize];
    file.read_exact_at(&mut json, LENGTH_BYTES).map_err(failed)?;
    safetensors::parse(json, length)
}
