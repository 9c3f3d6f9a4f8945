/* The codec: values survive in host memory and on the device, damage is found, arguments are checked. */
#include "memory.h"

enum { TYPES = 5, TILES = 6, BYTES = TILES * WB_CODEC_TILE_BYTES + 24, MOST = BYTES + 4096 };

static const wb_dtype types[TYPES] = {WB_DTYPE_BF16, WB_DTYPE_F16, WB_DTYPE_F32,
                                      WB_DTYPE_F8_E4M3FN, WB_DTYPE_F8_E5M2};

static uint64_t size_of(wb_dtype type)
{
    return type == WB_DTYPE_F32 ? 4 : type == WB_DTYPE_BF16 || type == WB_DTYPE_F16 ? 2 : 1;
}

/* Values whose exponents are unevenly frequent; the fourth tile is zeros, the fifth random bits. */
static void make_values(wb_dtype type, unsigned char *to)
{
    uint64_t state = 88172645463325252u;
    for (uint64_t at = 0; at < BYTES; at += size_of(type)) {
        uint32_t bits;
        float number = 0.02f;
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        number *= (float)(int64_t)(state & 0xffff) / 65536.0f - 0.5f;
        memcpy(&bits, &number, sizeof bits);
        if (type == WB_DTYPE_BF16) bits >>= 16;
        if (type == WB_DTYPE_F16) bits = (bits >> 13 & 0x3fff) | (bits >> 16 & 0x8000);
        if (size_of(type) == 1) bits = (bits >> 20 & 0x3f) | (bits >> 24 & 0x80);
        if (at / WB_CODEC_TILE_BYTES == 3) bits = 0;
        if (at / WB_CODEC_TILE_BYTES == 4) bits = (uint32_t)(state >> 20);
        memcpy(to + at, &bits, size_of(type));
    }
}

static void values_survive_in_host_memory(wb_device *device)
{
    static unsigned char source[BYTES], encoded[MOST], back[BYTES];
    (void)device;
    for (int at = 0; at < TYPES; at++) {
        wb_codec_info made = WB_CODEC_INFO_INIT, found = WB_CODEC_INFO_INIT;
        uint64_t most = 0;
        make_values(types[at], source);
        CHECK_OK(wb_codec_get_max_bytes(types[at], BYTES, &most, &error));
        CHECK(most > BYTES && most <= BYTES + BYTES / 500 + 95 && most <= MOST);
        CHECK_OK(wb_codec_encode(types[at], source, BYTES, encoded, most, 0, &made, &error));
        CHECK_OK(wb_codec_get_info(encoded, MOST, &found, &error));
        CHECK(memcmp(&made, &found, sizeof made) == 0);
        CHECK_SAME(made.dtype, types[at]);
        CHECK_SAME(made.decoded_bytes, BYTES);
        CHECK_SAME(made.tiles, TILES + 1);
        CHECK_SAME(made.constant_tiles, 1);
        CHECK(made.raw_tiles >= 2 && made.encoded_bytes < BYTES);
        CHECK_OK(wb_codec_measure(types[at], source, BYTES, 0, &found, &error));
        CHECK(memcmp(&made, &found, sizeof made) == 0);
        memset(back, 0xaa, sizeof back);
        CHECK_OK(wb_codec_decode(encoded, made.encoded_bytes, 0, back, BYTES, 1, 0, NULL, &error));
        CHECK(memcmp(back, source, BYTES) == 0);
        memset(back, 0xaa, sizeof back);
        CHECK_OK(wb_codec_decode(encoded, made.encoded_bytes, 2 * WB_CODEC_TILE_BYTES, back,
                                 WB_CODEC_TILE_BYTES, 1, 1, &found, &error));
        CHECK(memcmp(back, source + 2 * WB_CODEC_TILE_BYTES, WB_CODEC_TILE_BYTES) == 0);
        CHECK(back[WB_CODEC_TILE_BYTES] == 0xaa);
    }
}

static void the_device_gives_the_bytes_of_the_host(wb_device *device)
{
    static unsigned char source[BYTES], wanted[MOST], encoded[MOST], back[BYTES];
    void *memory = NULL;
    REQUIRE_OK(wb_device_alloc(device, 4 * MOST, &memory, &error));
    unsigned char *values = (unsigned char *)memory, *compressed = values + (MOST + 15) / 16 * 16;
    unsigned char *decoded = compressed + (MOST + 15) / 16 * 16;
    unsigned char *count = decoded + (MOST + 15) / 16 * 16;
    for (int at = 0; at < TYPES; at++) {
        wb_codec_info made = WB_CODEC_INFO_INIT;
        uint64_t most = 0, wrong = 7;
        make_values(types[at], source);
        CHECK_OK(wb_codec_get_max_bytes(types[at], BYTES, &most, &error));
        CHECK_OK(wb_codec_encode(types[at], source, BYTES, wanted, most, 1, &made, &error));
        CHECK_OK(wb_device_copy(device, values, source, BYTES, NULL, &error));
        CHECK_OK(wb_device_copy(device, count, &wrong, 8, NULL, &error));
        CHECK_OK(wb_codec_queue_encode(device, types[at], values, BYTES, compressed, most, NULL,
                                       &error));
        CHECK_OK(wb_codec_queue_decode(device, types[at], compressed, most, BYTES, 0, decoded,
                                       BYTES, NULL, &error));
        CHECK_OK(wb_codec_queue_verify(device, compressed, most, BYTES, 0, decoded, BYTES, count,
                                       NULL, &error));
        CHECK(read_device(device, encoded, compressed, most));
        CHECK(memcmp(encoded, wanted, made.encoded_bytes) == 0);
        CHECK(read_device(device, back, decoded, BYTES));
        CHECK(memcmp(back, source, BYTES) == 0);
        CHECK(read_device(device, &wrong, count, 8));
        CHECK_SAME(wrong, 7);
        /* Two of its tiles are not those of the checksums. */
        CHECK_OK(wb_codec_queue_verify(device, compressed, most, BYTES, 0, values + 16,
                                       WB_CODEC_TILE_BYTES * 2, count, NULL, &error));
        CHECK(read_device(device, &wrong, count, 8));
        CHECK_SAME(wrong, 9);
    }
    CHECK_OK(wb_device_free(device, memory, &error));
}

static void damage_is_found(wb_device *device)
{
    static unsigned char source[BYTES], encoded[MOST], back[BYTES];
    wb_codec_info made = WB_CODEC_INFO_INIT;
    (void)device;
    make_values(WB_DTYPE_BF16, source);
    REQUIRE_OK(wb_codec_encode(WB_DTYPE_BF16, source, BYTES, encoded, MOST, 1, &made, &error));
    const uint64_t bytes = made.encoded_bytes;
    CHECK_ERROR(WB_ERR_DAMAGED, wb_codec_get_info(encoded, 63, &made, &error), "63|64");
    CHECK_ERROR(WB_ERR_DAMAGED, wb_codec_get_info(encoded, bytes - 1, &made, &error), "truncated");
    encoded[4] = 2;
    CHECK_ERROR(WB_ERR_DAMAGED, wb_codec_get_info(encoded, bytes, &made, &error), "version 2");
    encoded[4] = 1;
    encoded[64 + 16] ^= 1;
    CHECK_ERROR(WB_ERR_DAMAGED, wb_codec_get_info(encoded, bytes, &made, &error), "tile 1");
    encoded[64 + 16] ^= 1;
    encoded[bytes - 2 * WB_CODEC_TILE_BYTES - 40] ^= 1;
    CHECK_OK(wb_codec_get_info(encoded, bytes, &made, &error));
    CHECK_ERROR(WB_ERR_DAMAGED,
                wb_codec_decode(encoded, bytes, 0, back, BYTES, 1, 0, &made, &error), "checksums|1");
}

static void invalid_arguments_are_refused(wb_device *device)
{
    static unsigned char source[BYTES], encoded[MOST];
    wb_codec_info info = WB_CODEC_INFO_INIT;
    uint64_t most = 5;
    CHECK_ERROR(WB_ERR_NOT_SUPPORTED, wb_codec_get_max_bytes(WB_DTYPE_F64, 8, &most, &error),
                "float64|bfloat16");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT, wb_codec_get_max_bytes(WB_DTYPE_F32, 6, &most, &error),
                "6 bytes|4 bytes");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE, wb_codec_get_max_bytes(WB_DTYPE_F32, 1ull << 36, &most, &error),
                "2^36");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_codec_get_max_bytes(WB_DTYPE_F8_E5M2, UINT64_MAX, &most, &error), "2^36");
    CHECK_SAME(most, 5);
    CHECK_NULL(wb_codec_get_max_bytes(WB_DTYPE_F32, 4, NULL, &error), "max_bytes");
    CHECK_NULL(wb_codec_encode(WB_DTYPE_BF16, NULL, 64, encoded, MOST, 0, NULL, &error), "source");
    CHECK_NULL(wb_codec_get_info(encoded, MOST, NULL, &error), "info");
    CHECK_ERROR(WB_ERR_OUT_OF_RANGE,
                wb_codec_encode(WB_DTYPE_BF16, source, 64, encoded, 100, 0, NULL, &error), "100|144");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_codec_decode(encoded, MOST, 0, source, 64, 2, 0, NULL, &error), "verify is 2");
    REQUIRE_OK(wb_codec_encode(WB_DTYPE_BF16, source, BYTES, encoded, MOST, 0, &info, &error));
    CHECK_ERROR(WB_ERR_UNALIGNED,
                wb_codec_decode(encoded, MOST, 16, source, 16, 0, 0, NULL, &error), "8192");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_codec_decode(encoded, MOST, 0, source, BYTES + 2, 0, 0, NULL, &error), "decoded");
    CHECK_ERROR(WB_ERR_UNALIGNED,
                wb_codec_queue_decode(device, WB_DTYPE_BF16, (void *)((uintptr_t)encoded | 15), MOST,
                                      BYTES, 0, source, BYTES, NULL, &error),
                "multiple of 16");
    CHECK_ERROR(WB_ERR_INVALID_ARGUMENT,
                wb_codec_queue_decode(device, WB_DTYPE_BF16, to_pointer(4096), 100, BYTES, 0,
                                      to_pointer(8192), BYTES, NULL, &error),
                "100|header");
    CHECK_NULL(wb_codec_queue_decode(NULL, WB_DTYPE_BF16, to_pointer(4096), MOST, BYTES, 0,
                                     to_pointer(8192), BYTES, NULL, &error),
               "device");
    CHECK_ERROR(WB_ERR_UNALIGNED,
                wb_codec_queue_verify(device, to_pointer(4096), MOST, BYTES, 0, to_pointer(8192),
                                      BYTES, to_pointer(12), NULL, &error),
                "multiple of 8");
}

static void no_values_have_a_header_alone(wb_device *device)
{
    unsigned char encoded[64];
    wb_codec_info info = WB_CODEC_INFO_INIT;
    void *memory = NULL;
    CHECK_OK(wb_codec_encode(WB_DTYPE_F32, NULL, 0, encoded, sizeof encoded, 0, &info, &error));
    CHECK(info.encoded_bytes == 64 && info.tiles == 0 && info.decoded_bytes == 0);
    CHECK_OK(wb_codec_decode(encoded, 64, 0, NULL, 0, 1, 0, &info, &error));
    REQUIRE_OK(wb_device_alloc(device, 64, &memory, &error));
    CHECK_OK(wb_codec_queue_encode(device, WB_DTYPE_F32, NULL, 0, memory, 64, NULL, &error));
    CHECK_OK(wb_codec_queue_decode(device, WB_DTYPE_F32, memory, 64, 0, 0, NULL, 0, NULL, &error));
    unsigned char found[64];
    CHECK(read_device(device, found, memory, 64));
    CHECK(memcmp(found, encoded, 64) == 0);
    CHECK_OK(wb_device_free(device, memory, &error));
}

CHECK_MAIN(CASE(values_survive_in_host_memory), CASE(the_device_gives_the_bytes_of_the_host),
           CASE(damage_is_found), CASE(invalid_arguments_are_refused),
           CASE(no_values_have_a_header_alone))
