"""What Python calls the functions, options and constants that the library's messages name."""

from __future__ import annotations

import re

# Options are arguments of the same name.
_OPTION = re.compile(r"\bwb_\w+_options\.(\w+)")

_FUNCTION = re.compile(r"\bwb_[a-z_]+")
FUNCTIONS = {
    "wb_arbiter_use": "Arbiter.use",
    "wb_buffer": "Buffer",
    "wb_buffer_alloc": "Buffer.alloc",
    "wb_buffer_map_file": "Buffer.map_file",
    "wb_codec_decode": "Codec.decode",
    "wb_codec_encode": "Codec.encode",
    "wb_codec_queue_decode": "Codec.queue_decode",
    "wb_device_alloc": "Device.alloc",
    "wb_device_stream_new": "Device.stream",
    "wb_expert_cache_new_for_offloader": "ExpertCache.for_offloader",
    "wb_offloader_begin_step": "Offloader.begin_step",
    "wb_offloader_compact": "Offloader.compact",
    "wb_offloader_join": "Offloader.join",
    "wb_offloader_read_parameter": "Offloader.read",
    "wb_offloader_reset": "Offloader.reset",
    "wb_offloader_resize_wait": "Offloader.resize_advance",
    "wb_plan_to_json": "Plan.to_json",
    "wb_safetensors_get_buffer": "Safetensors.buffer",
    "wb_safetensors_get_parameters": "Safetensors.parameters",
    "wb_safetensors_get_tensor_info": "Safetensors.keys",
    "wb_safetensors_load_view": "Safetensors.load_view",
    "wb_view_copy_from": "View.copy_from",
    "wb_view_to_dlpack_for_reading": "View.for_reading",
    "wb_view_to_dlpack_versioned": "View.__dlpack__",
}

# Constants are words, those of budgets arguments.
_CONSTANT = re.compile(r"\bWB_(?:[A-Z]+_)*[A-Z0-9]+\b")
_BUDGET = "WB_BUDGET_"
ARGUMENTS = {
    "WB_ACCESSOR_": "accessor",
    "WB_COMPRESS_": "compress",
    "WB_FILE_MODE_": "file_mode",
    "WB_HUGE_PAGES_": "huge_pages",
    "WB_NUMA_": "numa_node",
    "WB_PLACEMENT_": "placement",
    "WB_TRANSFER_MODE_": "transfer_mode",
}


def _constant(name: str) -> str:
    if name.startswith(_BUDGET):
        return name[len(_BUDGET) :].lower()
    for prefix, argument in ARGUMENTS.items():
        if name.startswith(prefix):
            word = name[len(prefix) :].lower().replace("_", "-")
            return f'{argument}="{word}"'
    return name


def in_python(message: str) -> str:
    """Returns a message of the library with Python's names in the place of C's."""
    message = _OPTION.sub(r"\1", message)
    message = _FUNCTION.sub(lambda found: FUNCTIONS.get(found[0], found[0]), message)
    return _CONSTANT.sub(lambda found: _constant(found[0]), message)
