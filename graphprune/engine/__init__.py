"""The engine: schedule, averages, adapters, data, the Trainer callback, and the run itself."""
