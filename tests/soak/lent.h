/* Memory that the soak lends to the library, by registration or as a DLPack tensor, and gets back by
 * a deleter: exactly once, with its content. */
#ifndef LENT_H
#define LENT_H

#include "thing.h"

struct lent;

/* `bytes` bytes of the heap, whose neighbours in a page may be lent too. */
struct lent *lent_new(uint64_t bytes, uint64_t key);

void *lent_memory(struct lent *lent);

/* The deleter of wb_buffer_register; its owner is the struct. */
void lent_back(void *lent);

/* The memory as a tensor, whose deleter gives it back. */
DLManagedTensor *lent_tensor(struct lent *lent);
DLManagedTensorVersioned *lent_versioned(struct lent *lent);

/* Calls the deleter and counts it once more, as if it had been called twice. */
void lent_twice(struct lent *lent);

/* What was lent and did not come back yet; negative when something came back twice. */
int64_t lent_out(void);

#endif
