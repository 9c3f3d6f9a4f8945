"""Allocates host memory of exactly 24 bytes, which the device and NumPy share."""

import weighbridge

with weighbridge.Device("host") as device:  # or "cuda:0"
    buffer = device.buffer(6 * 4)  # pinned where the platform allows it
    view = buffer.view("float32", (2, 3))  # torch.from_dlpack(view) works too
    array = view.numpy()  # no copy
    array[:] = 1.5
    print(buffer)
    print(array)
