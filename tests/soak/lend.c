/* Memory over DLPack, in and out. */
#include "counts.h"
#include "lent.h"
#include "worker.h"

static const struct thing nothing = {NOTHING, {NULL}, NULL, 0, 0, 0, 0};

struct thing make_imported(struct worker *worker)
{
    wb_device *device = worker->round->device;
    const uint64_t key = draw(&worker->random, UINT64_MAX), bytes = draw_bytes(&worker->random, 15);
    struct lent *lent = lent_new(bytes, key);
    wb_view *view = NULL;
    const int made =
        draw(&worker->random, 2) == 0
            ? CHECK_OK(wb_view_from_dlpack(device, lent_tensor(lent), WB_ACCESSOR_HOST, NULL, &view,
                                           &error))
            : CHECK_OK(wb_view_from_dlpack_versioned(device, lent_versioned(lent), WB_ACCESSOR_HOST,
                                                     NULL, &view, &error));
    if (!made) {
        lent_back(lent);
        return nothing;
    }
    count(IMPORTED);
    return thing_of_view(view, key, 0);
}

/* What a consumer gets: it looks at the tensor, and knows nothing of the view. */
static struct thing as_tensor(struct thing of, const DLTensor *tensor)
{
    if (tensor->device.device_type == kDLCPU) {
        CHECK(tensor->data == of.data);
    } else {
        CHECK_SAME(number(tensor->data), of.device_address);
    }
    CHECK_SAME(tensor->byte_offset, 0);
    return of;
}

struct thing make_exported(struct worker *worker, const struct thing *of)
{
    struct thing made = *of;
    made.kind = NOTHING;
    if (of->kind != A_VIEW) return made;
    if (draw(&worker->random, 2) == 0) {
        if (CHECK_OK(wb_view_to_dlpack(of->as.view, &made.as.tensor, &error))) {
            made = as_tensor(made, &made.as.tensor->dl_tensor);
            made.kind = A_TENSOR;
        }
    } else if (CHECK_OK(wb_view_to_dlpack_versioned(of->as.view, &made.as.versioned, &error))) {
        made = as_tensor(made, &made.as.versioned->dl_tensor);
        made.kind = A_VERSIONED_TENSOR;
    }
    count(EXPORTED);
    return made;
}
