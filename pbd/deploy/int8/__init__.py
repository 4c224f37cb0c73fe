"""8-bit integers: quantisation after training, sensitivity of layers, fake quantisation."""
