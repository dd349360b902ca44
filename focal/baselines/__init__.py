"""What encrypted training is compared with, on the same rows and splits.

::

    logistic     one institution alone, or all rows pooled      federated   FedAvg, FedProx, personalised; plain and masked sums
    scratch      all weights encrypted, no pretrained network   encrypted   FedAvg with threshold CKKS sums
    spe_fl       a ResNet with noisy, encrypted updates         privacy     FedAvg with differential privacy

The interactive protocol without encryption is a role: ``focal.protocols.interactive.plain``.
"""
