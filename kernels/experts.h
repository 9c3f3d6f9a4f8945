/* The state of an expert cache in device memory, and the arguments of a call, for C and CUDA. The
 * same structs are in src/device/experts.rs. */
#ifndef WEIGHBRIDGE_KERNELS_EXPERTS_H
#define WEIGHBRIDGE_KERNELS_EXPERTS_H

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

/* The most experts of a layer. */
#define WB_MOST_EXPERTS 4096

/* What calls change as a whole. */
typedef struct wb_experts_head {
    uint64_t clock;    /* number of the last call */
    uint32_t slots;    /* slots in use; the arrays are for `capacity` */
    uint32_t admitted; /* experts that the last call has to gather; on the host */
    uint64_t tickets;  /* blocks of all CUDA launches so far */
    uint64_t decided;  /* CUDA launches whose first block has decided what to gather, and how much the
                          last one gathers */
    uint64_t chunks;   /* that blocks of the CUDA launch have taken to gather */
} wb_experts_head;

/* One expert tensor of every layer. */
typedef struct wb_experts_tensor {
    uint64_t slots;       /* address of slot 0 */
    uint64_t bytes;       /* of an expert */
    uint64_t first_chunk; /* chunks of the tensors before it, of an expert */
} wb_experts_tensor;

/* One expert tensor of one layer, in memory that the device maps. */
typedef struct wb_experts_source {
    uint64_t address; /* of expert 0 */
    int64_t stride;   /* bytes from an expert to the next */
} wb_experts_source;

typedef struct wb_experts_counters {
    uint64_t hits;       /* experts that calls found in slots */
    uint64_t misses;     /* experts that calls did not */
    uint64_t evictions;  /* experts of any layer that calls of this layer evicted */
    uint64_t bytes;      /* gathered */
    uint64_t prefetched; /* experts that hints copied into slots */
    uint64_t refused;    /* experts for which no slot could be taken */
    uint64_t ignored;    /* ids without an expert */
    uint64_t calls;      /* calls of route */
} wb_experts_counters;

typedef struct wb_experts_miss {
    uint32_t expert; /* of the layer */
    uint32_t slot;
} wb_experts_miss;

/* The state. Every address is in device memory. */
typedef struct wb_experts {
    uint64_t head;     /* wb_experts_head */
    uint64_t tensors;  /* wb_experts_tensor for each tensor */
    uint64_t sources;  /* wb_experts_source for each layer and tensor */
    uint64_t slot_of;  /* int32_t for each expert of all layers; -1: in none */
    uint64_t expert_in;/* int32_t for each slot, an index among those of all layers; -1: empty */
    uint64_t used;     /* uint64_t for each slot: the last call that used it; 0: none */
    uint64_t held;     /* uint64_t for each lane and slot: the lane's last call that used it */
    uint64_t lanes;    /* uint64_t for each lane: its last call; all ones: it holds nothing */
    uint64_t counters; /* wb_experts_counters for each layer */
    uint64_t misses;   /* wb_experts_miss for each expert of the largest layer */
    uint64_t expert_bytes;  /* of all tensors */
    uint64_t expert_chunks; /* of all tensors */
    uint32_t lane_count, tensor_count, capacity, layer_count;
    uint32_t experts;  /* of all layers */
    uint32_t reserved;
} wb_experts;

/* Bytes that a block copies at a time; a chunk is of one tensor. */
#define WB_EXPERTS_CHUNK 65536u

/* Blocks of a CUDA launch: as many as read host memory at the link's rate. */
#define WB_EXPERTS_BLOCKS 32u

/* A call of route or prefetch. */
typedef struct wb_experts_call {
    uint64_t ids;   /* address of `count` numbers of experts, of 4 or 8 bytes, signed */
    uint64_t slots; /* address for as many slots, of the same type; 0: none are written */
    uint64_t count;
    uint32_t wide;       /* whether numbers have 8 bytes */
    uint32_t layer;
    uint32_t lane;
    uint32_t hint;       /* whether it holds nothing */
    uint32_t first, end; /* the experts of the pass; others get slot -1 */
    uint32_t base;    /* index of the layer's first expert among those of all layers */
    uint32_t experts; /* number of its experts */
} wb_experts_call;

#endif
