/* weighbridge.h before dlpack.h. */
#include "weighbridge.h"

#include "dlpack_structs.h"

int before_dlpack(wb_view *view);
int before_dlpack(wb_view *view)
{
    DLManagedTensor *tensor = NULL;
    DLManagedTensorVersioned *versioned = NULL;
    return wb_view_to_dlpack(view, &tensor, NULL) + tensor->dl_tensor.ndim +
           wb_view_to_dlpack_versioned(view, &versioned, NULL) + versioned->dl_tensor.ndim;
}
