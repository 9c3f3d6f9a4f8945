//! The headers: which files of src each declares.

/// A header of include/weighbridge.
pub struct Header {
    pub noun: &'static str,
    pub title: &'static str,
    /// The files of src whose public items it declares, in this order; opaque types come first.
    pub files: &'static [&'static str],
}

/// Every header, in the order of the umbrella.
pub const HEADERS: &[Header] = &[
    Header { noun: "version", title: "The version of the library.", files: &["capi/version.rs"] },
    Header { noun: "status", title: "Status codes.", files: &["status.rs", "capi/status.rs"] },
    Header {
        noun: "error",
        title: "Errors, and the callback for errors that no call can return.",
        files: &["capi/error.rs", "capi/log.rs"],
    },
    Header { noun: "dtype", title: "Element types.", files: &["tensor/dtype.rs"] },
    Header {
        noun: "device",
        title: "Devices: CUDA devices, and the host. Their memory, copies and streams.",
        files: &[
            "capi/tristate.rs",
            "capi/device/handle.rs",
            "capi/device/info.rs",
            "capi/device/memory.rs",
            "capi/device/stream.rs",
        ],
    },
    Header {
        noun: "buffer",
        title: "Buffers: host memory that is allocated, registered, or mapped from a file.",
        files: &[
            "capi/progress.rs",
            "capi/buffer/options.rs",
            "capi/buffer/handle.rs",
            "capi/buffer/info.rs",
        ],
    },
    Header {
        noun: "view",
        title: "Views: typed, shaped, strided windows into memory.",
        files: &["capi/view/layout.rs", "capi/view/handle.rs", "capi/view/info.rs"],
    },
    Header {
        noun: "dlpack",
        title: "Views as tensors of DLPack, and tensors of DLPack as views.",
        files: &["capi/dlpack/export.rs", "capi/dlpack/import.rs"],
    },
    Header {
        noun: "parameter",
        title: "Parameters of a model, as plans and offloaders take them.",
        files: &["capi/parameter.rs"],
    },
    Header {
        noun: "safetensors",
        title: "Safetensors files: tensors by name and index over one buffer.",
        files: &["capi/safetensors.rs"],
    },
    Header {
        noun: "plan",
        title: "Plans: the placement of every parameter, before anything is allocated.",
        files: &["capi/plan/options.rs", "capi/plan/handle.rs", "capi/plan/info.rs"],
    },
    Header {
        noun: "offloader",
        title: "Offloaders: committed plans, which keep parameters and transfer them.",
        files: &[
            "capi/offloader/handle.rs",
            "capi/offloader/step.rs",
            "capi/offloader/resize.rs",
            "capi/offloader/parameters.rs",
            "capi/offloader/stats.rs",
        ],
    },
    Header {
        noun: "arbiter",
        title: "Arbiters: offloaders that share the memory of a device.",
        files: &["capi/arbiter.rs"],
    },
    Header {
        noun: "quantizer",
        title: "Quantizers: tensors to FP8 and back.",
        files: &[
            "capi/quantizer/options.rs",
            "capi/quantizer/handle.rs",
            "capi/quantizer/tensor.rs",
        ],
    },
    Header {
        noun: "codec",
        title: "The codec: values compressed without loss.",
        files: &["capi/codec.rs"],
    },
    Header {
        noun: "experts",
        title: "Expert caches: experts of a mixture in slots on the device.",
        files: &[
            "capi/experts/options.rs",
            "capi/experts/handle.rs",
            "capi/experts/calls.rs",
            "capi/experts/info.rs",
        ],
    },
    Header {
        noun: EXTENSION,
        title: "For bindings of Python: DLPack capsules and owners of memory. Not part of weighbridge.h.",
        files: &["capi/python.rs"],
    },
];

/// The header that the umbrella leaves out.
pub const EXTENSION: &str = "python";
