"""One joint step of interactive split learning under an encrypted head. Begin with :mod:`focal.heads.joint.engine`."""
