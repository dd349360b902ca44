"""What the roles of every protocol share: saying and hearing, the run id, keys, refreshes, secure sums, the release.

Abstract roles (server, custodian, institution, audit), of which each protocol's are siblings,
and the smaller things that they are made of.
"""
