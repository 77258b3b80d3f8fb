"""GEAR Studio: understand, reproduce and build on guided end-to-end autoregression."""

from gear_studio.models.generator import Generator
from gear_studio.models.teachers import Teacher
from gear_studio.models.tokenizer import Tokenizer
from gear_studio.runs import Run

__all__ = ["Generator", "Run", "Teacher", "Tokenizer"]
