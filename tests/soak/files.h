/* The files that all threads map: their bytes are the content of one key, by their place in it. */
#ifndef FILES_H
#define FILES_H

#include "soak.h"

struct files {
    char plain[300], model[300];
    uint64_t bytes; /* of the plain one */
    uint64_t key;
};

/* Writes a plain file and a safetensors file of tensors of odd sizes; 0 when it cannot. */
int files_write(struct files *files);
void files_remove(const struct files *files);

#endif
