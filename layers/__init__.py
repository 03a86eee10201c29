"""Modules with parameters: the report's blocks, losses and network."""

from layers.aspp import MiniASPP
from layers.attention import MultiHeadSelfAttention, PolarizedSelfAttention
from layers.bottleneck import AttentionAndStrips
from layers.conv import Conv2d, ConvNorm, ConvTranspose2d
from layers.gate import AttentionGate
from layers.inception import InceptionBlock
from layers.initialisers import seeded
from layers.loss import (
    CombinedLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    IoULoss,
    LovaszLoss,
    MarginLoss,
    SegmentationLoss,
)
from layers.module import Buffer, Identity, Module, Parameter, Sequential
from layers.norm import BatchNorm2d, LayerNorm
from layers.pointwise import GELU, Dropout, ReLU
from layers.pool import MaxPool2d
from layers.pyramid import FeaturePyramidAttention, FeaturePyramidPooling
from layers.residual import PreActivationBlock, ResidualBlock
from layers.strip import MixedPooling, StripPooling, StripPyramidPooling
from layers.summary import Size, measure
from layers.unet import DecoderStage, UNet, encoder_stage

__all__ = [
    "GELU",
    "AttentionAndStrips",
    "AttentionGate",
    "BatchNorm2d",
    "Buffer",
    "CombinedLoss",
    "Conv2d",
    "ConvNorm",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "DecoderStage",
    "DiceLoss",
    "Dropout",
    "FeaturePyramidAttention",
    "FeaturePyramidPooling",
    "FocalLoss",
    "Identity",
    "InceptionBlock",
    "IoULoss",
    "LayerNorm",
    "LovaszLoss",
    "MarginLoss",
    "MaxPool2d",
    "MiniASPP",
    "MixedPooling",
    "Module",
    "MultiHeadSelfAttention",
    "Parameter",
    "PolarizedSelfAttention",
    "PreActivationBlock",
    "ReLU",
    "ResidualBlock",
    "SegmentationLoss",
    "Sequential",
    "Size",
    "StripPooling",
    "StripPyramidPooling",
    "UNet",
    "encoder_stage",
    "measure",
    "seeded",
]
