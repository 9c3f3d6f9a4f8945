/* What lies in memory: bytes that a key and their place in it decide, and checksums of them. */
#ifndef CONTENT_H
#define CONTENT_H

#include "soak.h"

/* Eight bytes of the content, from `8 * at` on. */
static inline uint64_t content_word(uint64_t key, uint64_t at)
{
    uint64_t mixed = (key + at * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    return mixed ^ mixed >> 32;
}

static inline void content_fill(void *memory, uint64_t bytes, uint64_t key)
{
    for (uint64_t at = 0; at < bytes; at += 8) {
        const uint64_t word = content_word(key, at / 8);
        memcpy((unsigned char *)memory + at, &word, bytes - at < 8 ? bytes - at : 8);
    }
}

/* Whether memory holds the content from `offset` on. */
static inline int content_is(const void *memory, uint64_t offset, uint64_t bytes, uint64_t key)
{
    const unsigned char *seen = (const unsigned char *)memory;
    for (uint64_t at = 0; at < bytes;) {
        const uint64_t word = content_word(key, (offset + at) / 8), skip = (offset + at) % 8;
        const uint64_t left = bytes - at, part = left < 8 - skip ? left : 8 - skip;
        if (memcmp(seen + at, (const unsigned char *)&word + skip, part) != 0) return 0;
        at += part;
    }
    return 1;
}

/* A checksum of all bytes: four lanes, so that the processor works on them at once. */
static inline uint64_t checksum(const void *memory, uint64_t bytes)
{
    uint64_t lanes[4] = {bytes, 1, 2, 3};
    const unsigned char *from = (const unsigned char *)memory;
    for (uint64_t at = 0; at < bytes; at += 32) {
        uint64_t words[4] = {0, 0, 0, 0};
        memcpy(words, from + at, bytes - at < 32 ? bytes - at : 32);
        for (int lane = 0; lane < 4; lane++) {
            const uint64_t mixed = (lanes[lane] ^ words[lane]) * 0x9fb21c651e98df25u;
            lanes[lane] = mixed ^ mixed >> 29;
        }
    }
    uint64_t sum = lanes[0];
    for (int lane = 1; lane < 4; lane++) sum = (sum ^ lanes[lane]) * 0xd6e8feb86659fd93u;
    return sum ^ sum >> 32;
}

#endif
