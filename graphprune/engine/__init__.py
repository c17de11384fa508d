"""The engine: schedule, averages, adapters, data, the Trainer callback, and the run that ties them together."""
