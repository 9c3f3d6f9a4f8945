/* A matrix, or consecutive rows of one, and the blocks that share a scale. */
#ifndef WEIGHBRIDGE_BLOCKS_H
#define WEIGHBRIDGE_BLOCKS_H

#include "fp8.h"

/* Strides count elements of the 32- or 16-bit side; the FP8 values are contiguous. */
typedef struct wb_blocks {
    uint64_t rows, cols;
    int64_t row_stride, col_stride;
    /* Elements of a block; the last block of a row or column may be smaller. */
    uint64_t block_rows, block_cols;
    /* Scales of a row of blocks, and the index of the first row in its block. */
    uint64_t scale_cols, first_row;
} wb_blocks;

#endif
