/* The header may come twice. */
#include "weighbridge.h"
#include "weighbridge.h"

uint32_t header_twice(void);
uint32_t header_twice(void) { return wb_version(); }
