/* A matrix, or some of its rows, with the blocks that share a scale. */
#ifndef WEIGHBRIDGE_BLOCKS_H
#define WEIGHBRIDGE_BLOCKS_H

#include "fp8.h"

/* Strides count elements of what is wider than 8 bits; the 8-bit side lies without gaps. */
typedef struct wb_blocks {
    uint64_t rows, cols;
    int64_t row_stride, col_stride;
    /* Elements of a block; the last one of a row or column may have fewer. */
    uint64_t block_rows, block_cols;
    /* Scales of a row of blocks, and where in its block the first row is. */
    uint64_t scale_cols, first_row;
} wb_blocks;

#endif
