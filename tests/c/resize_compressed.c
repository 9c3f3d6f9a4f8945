/* The promises of a budget that changes hold for weights that are carried compressed. */
#define RING_BYTES (2 * 8192)
#define RING_CAPACITY (RING_BYTES + 512) /* with a header and a directory */
#define RING_DTYPE WB_DTYPE_BF16
#define RING_VALUE 2
#define RING_COMPRESS WB_COMPRESS_SELECTED
#include "resize.c"
