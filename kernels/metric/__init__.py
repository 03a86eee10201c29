"""The counts from which scores are computed: confusion matrices per image."""

from kernels.core.dispatch import operator
from kernels.metric import reference

predicted_labels = operator(
    reference.predicted_labels, "logits (*S, C); where 0 <= first < C", cuda="kernels.metric.cuda"
)
confusion_per_image = operator(
    reference.confusion_per_image, "truth int (N, *S); prediction int (N, *S)", cuda="kernels.metric.cuda"
)
