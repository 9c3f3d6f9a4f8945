/* The files that all threads map. */
#include "files.h"

#include "content.h"

enum { PLAIN_BYTES = 300007, TENSORS = 7, HEADER_ROOM = 2048 };

static int write_plain(const struct files *files)
{
    unsigned char *content = (unsigned char *)malloc(PLAIN_BYTES);
    if (content == NULL) return 0;
    content_fill(content, PLAIN_BYTES, files->key);
    const int done = write_file(files->plain, content, PLAIN_BYTES);
    free(content);
    return done;
}

/* Eight bytes with the header's length, the header, then the tensors, some of them not aligned. */
static int write_model(const struct files *files)
{
    static const uint64_t sizes[TENSORS] = {4096, 1, 50001, 64, 7777, 131072, 3};
    char header[HEADER_ROOM];
    uint64_t length = 1, end = 0;
    header[0] = '{';
    for (int tensor = 0; tensor < TENSORS; tensor++) {
        length += (uint64_t)snprintf(
            header + length, sizeof header - length,
            "%s\"tensor.%d\":{\"dtype\":\"U8\",\"shape\":[%" PRIu64 "],\"data_offsets\":[%" PRIu64
            ",%" PRIu64 "]}", tensor > 0 ? "," : "", tensor, sizes[tensor], end,
            end + sizes[tensor]);
        end += sizes[tensor];
    }
    header[length++] = '}';
    unsigned char *content = (unsigned char *)malloc(8 + length + end);
    if (content == NULL) return 0;
    content_fill(content, 8 + length + end, files->key);
    for (int byte = 0; byte < 8; byte++) content[byte] = (unsigned char)(length >> 8 * byte);
    memcpy(content + 8, header, length);
    const int done = write_file(files->model, content, 8 + length + end);
    free(content);
    return done;
}

int files_write(struct files *files)
{
    file_name(files->plain, sizeof files->plain, "soak.bin");
    file_name(files->model, sizeof files->model, "soak.safetensors");
    files->bytes = PLAIN_BYTES;
    files->key = settings.seed ^ 0xf11e;
    return write_plain(files) && write_model(files);
}

void files_remove(const struct files *files)
{
    unlink(files->plain);
    unlink(files->model);
}
