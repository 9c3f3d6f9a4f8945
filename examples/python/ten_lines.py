"""Exact-size host memory, as the device and as NumPy see it: the same bytes."""

import weighbridge

with weighbridge.Device("host") as device:  # or "cuda:0"
    buffer = device.buffer(6 * 4)  # pinned where the platform allows it
    view = buffer.view("float32", (2, 3))  # what torch.from_dlpack(view) takes, too
    array = view.numpy()  # no copy
    array[:] = 1.5
    print(buffer)
    print(array)
