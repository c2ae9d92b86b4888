"""Energy-based models for Keras and TensorFlow Probability."""

__version__ = "0.1.0"
