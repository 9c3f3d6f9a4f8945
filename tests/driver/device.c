/* Initialization, and the properties of devices. */
#include <stdio.h>
#include <string.h>

#include "driver.h"

static const struct attribute_override defaults[] = {
    {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132},
    {CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1},
    {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 3},
    {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 9},
    {CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1},
    {CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1},
};

/* The last entry wins. */
static int find_attribute(const struct attribute_override *table, size_t count, int attribute,
                          int *value)
{
    for (size_t i = count; i-- > 0;) {
        if (table[i].attribute != attribute) continue;
        *value = table[i].value;
        return 1;
    }
    return 0;
}

int device_exists(CUdevice device)
{
    return device >= 0 && device < driver.settings.devices;
}

int device_attribute(CUdevice device, int attribute)
{
    int value = attribute == CU_DEVICE_ATTRIBUTE_PCI_BUS_ID ? device + 1 : 0;
    if (!find_attribute(driver.settings.overrides, (size_t)driver.settings.override_count,
                        attribute, &value)) {
        find_attribute(defaults, sizeof defaults / sizeof defaults[0], attribute, &value);
    }
    return value;
}

CUresult cuInit(unsigned flags)
{
    ENTER(cuInit, NEEDS_NOTHING);
    if (flags != 0 || driver.settings.malformed) return leave(CUDA_ERROR_INVALID_VALUE);
    if (driver.settings.devices == 0) return leave(CUDA_ERROR_NO_DEVICE);
    driver_mark_initialized();
    return leave(CUDA_SUCCESS);
}

CUresult cuDriverGetVersion(int *version)
{
    ENTER(cuDriverGetVersion, NEEDS_NOTHING);
    if (version == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    *version = driver.settings.version;
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGetCount(int *count)
{
    ENTER(cuDeviceGetCount, NEEDS_INIT);
    if (count == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    *count = driver.settings.devices;
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    ENTER(cuDeviceGet, NEEDS_INIT);
    if (device == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    if (!device_exists(ordinal)) return leave(CUDA_ERROR_INVALID_DEVICE);
    *device = ordinal;
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    ENTER(cuDeviceGetName, NEEDS_INIT);
    if (name == NULL || length <= 0) return leave(CUDA_ERROR_INVALID_VALUE);
    if (!device_exists(device)) return leave(CUDA_ERROR_INVALID_DEVICE);
    snprintf(name, (size_t)length, "%s", "Driver test double");
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    ENTER(cuDeviceTotalMem_v2, NEEDS_INIT);
    if (bytes == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    if (!device_exists(device)) return leave(CUDA_ERROR_INVALID_DEVICE);
    *bytes = driver.settings.capacity;
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device)
{
    ENTER(cuDeviceGetAttribute, NEEDS_INIT);
    if (value == NULL || attribute < 1 || attribute > 200) {
        return leave(CUDA_ERROR_INVALID_VALUE);
    }
    if (!device_exists(device)) return leave(CUDA_ERROR_INVALID_DEVICE);
    *value = device_attribute(device, attribute);
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device)
{
    ENTER(cuDeviceGetPCIBusId, NEEDS_INIT);
    if (id == NULL) return leave(CUDA_ERROR_INVALID_VALUE);
    if (!device_exists(device)) return leave(CUDA_ERROR_INVALID_DEVICE);
    char text[32];
    snprintf(text, sizeof text, "%04x:%02x:%02x.0",
             (unsigned)device_attribute(device, CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID) & 0xffff,
             (unsigned)device_attribute(device, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID) & 0xff,
             (unsigned)device_attribute(device, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID) & 0xff);
    if (length <= (int)strlen(text)) return leave(CUDA_ERROR_INVALID_VALUE);
    memcpy(id, text, strlen(text) + 1);
    return leave(CUDA_SUCCESS);
}
