"""The complete system: data, training, evaluation, reports and the command lines."""
