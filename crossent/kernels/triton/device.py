"""All that there are kernels for."""

from crossent.kernels.triton.labels import PickedKernels, PredictionKernels
from crossent.kernels.triton.launches import TritonKernels
from crossent.kernels.triton.slices import SoftmaxKernels
from crossent.kernels.triton.token_launches import TokenKernels


class DeviceKernels(SoftmaxKernels, PredictionKernels, TokenKernels, TritonKernels):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.picked = PickedKernels(self.note)
