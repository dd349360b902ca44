"""What encrypted training is compared with, on the same rows and splits.

::

    logistic     one institution alone, or all rows pooled      federated   FedAvg, FedProx, personalised; plain and masked sums
    plain_split  the interactive protocol without encryption    encrypted   FedAvg with threshold CKKS sums
    scratch      all weights encrypted, no pretrained network   privacy     FedAvg with differential privacy
    spe_fl       a ResNet with noisy, encrypted updates
"""
