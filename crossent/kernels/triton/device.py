"""All that there are kernels for."""

from crossent.kernels.triton.labels import PickedKernels, PredictionKernels
from crossent.kernels.triton.launches import TritonKernels
from crossent.kernels.triton.slices import SoftmaxKernels


class DeviceKernels(SoftmaxKernels, PredictionKernels, TritonKernels):
    picked = PickedKernels()
