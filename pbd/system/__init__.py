"""This process and its host: backend, devices, memory, launcher, Keras' global state, watchdog. Loads no Keras."""
