"""What an energy is: the energy function of a network, the units of its data, and its base distribution."""
