/* The header needs no other before it. */
#include "weighbridge.h"

typedef wb_status (*opens)(const char *, const wb_device_options *, wb_device **, wb_error *);
opens header_alone(void);
opens header_alone(void) { return wb_device_open; }
