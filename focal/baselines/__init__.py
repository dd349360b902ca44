"""What encrypted training is compared with, on the same rows and splits.

::

    logistic    one institution alone, or all rows pooled
    scratch     all weights encrypted, no pretrained network
    spe_fl      a ResNet with noisy, encrypted updates
    federated   FedAvg, FedProx, personalised; plain and masked sums
    encrypted   FedAvg with threshold CKKS sums
    whole       FedAvg of the whole network, lower segment and head
    privacy     FedAvg with differential privacy

The interactive protocol without encryption is a role: ``focal.protocols.interactive.plain``.
"""
