"""What is written in C++: compiled once on the machine that trains, beside plain twins that need no compiler."""
