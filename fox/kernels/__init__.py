"""The computations that decide how fast Fox is, each beside the plain torch that it must agree with."""
