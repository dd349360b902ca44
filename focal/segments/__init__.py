"""Lower segment (torch), projection (numpy only) and upper segment (torch) of the model that is trained together."""
