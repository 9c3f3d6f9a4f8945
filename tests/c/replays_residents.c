/* The promises of captured steps hold for weights that the device keeps compressed. */
#define RING_BYTES (2 * 8192)
#define RING_CAPACITY (RING_BYTES + 512) /* with a header and a directory, in whole pages */
#define RING_DTYPE WB_DTYPE_BF16
#define RING_VALUE 2
#define RING_COMPRESS WB_COMPRESS_SELECTED
#define RING_KEPT
#include "replays.c"
