"""Modules with parameters: the report's blocks, losses and network."""

from layers.aspp import MiniASPP
from layers.attention import MultiHeadSelfAttention, PolarizedSelfAttention
from layers.bottleneck import AttentionAndStrips
from layers.containers import ModuleDict, ModuleList
from layers.conv import Conv2d, ConvNorm, ConvTranspose2d
from layers.conv1d import Conv1d
from layers.gate import AttentionGate
from layers.inception import InceptionBlock
from layers.initialisers import seeded
from layers.linear import Embedding, Flatten, Linear
from layers.loss import (
    BoundaryLoss,
    CombinedLoss,
    CrossEntropyLoss,
    DiceLoss,
    DiceSemimetricLoss,
    FocalLoss,
    FocalTverskyLoss,
    GeneralizedDiceLoss,
    IoULoss,
    JaccardMetricLoss,
    LovaszLoss,
    MarginLoss,
    MCCLoss,
    SegmentationLoss,
    TopKLoss,
    TverskyLoss,
    UnifiedFocalLoss,
)
from layers.module import Buffer, Identity, LoadReport, Module, Parameter, Sequential
from layers.norm import BatchNorm2d, GroupNorm, InstanceNorm2d, LayerNorm, RMSNorm
from layers.pointwise import GELU, Dropout, Dropout2d, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from layers.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from layers.pyramid import FeaturePyramidAttention, FeaturePyramidPooling
from layers.regression import BCEWithLogitsLoss, L1Loss, MSELoss, SmoothL1Loss
from layers.residual import PreActivationBlock, ResidualBlock
from layers.strip import MixedPooling, StripPooling, StripPyramidPooling
from layers.summary import Size, measure
from layers.unet import DecoderStage, UNet, encoder_stage

__all__ = [
    "GELU",
    "AdaptiveAvgPool2d",
    "AttentionAndStrips",
    "AttentionGate",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "BatchNorm2d",
    "BoundaryLoss",
    "Buffer",
    "CombinedLoss",
    "Conv1d",
    "Conv2d",
    "ConvNorm",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "DecoderStage",
    "DiceLoss",
    "DiceSemimetricLoss",
    "Dropout",
    "Dropout2d",
    "Embedding",
    "FeaturePyramidAttention",
    "FeaturePyramidPooling",
    "Flatten",
    "FocalLoss",
    "FocalTverskyLoss",
    "GeneralizedDiceLoss",
    "GroupNorm",
    "Identity",
    "InceptionBlock",
    "InstanceNorm2d",
    "IoULoss",
    "JaccardMetricLoss",
    "L1Loss",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LoadReport",
    "LovaszLoss",
    "MCCLoss",
    "MSELoss",
    "MarginLoss",
    "MaxPool2d",
    "MiniASPP",
    "MixedPooling",
    "Module",
    "ModuleDict",
    "ModuleList",
    "MultiHeadSelfAttention",
    "Parameter",
    "PolarizedSelfAttention",
    "PreActivationBlock",
    "RMSNorm",
    "ReLU",
    "ResidualBlock",
    "SegmentationLoss",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Size",
    "SmoothL1Loss",
    "Softplus",
    "StripPooling",
    "StripPyramidPooling",
    "Tanh",
    "TopKLoss",
    "TverskyLoss",
    "UNet",
    "UnifiedFocalLoss",
    "encoder_stage",
    "measure",
    "seeded",
]
