"""The same interventions on an unmodified vLLM: a worker, a scheduler and an endpoint plugin, and their clients."""
