"""PIIP in the shapes that other libraries expect of a backbone; each module needs the library that it names."""
