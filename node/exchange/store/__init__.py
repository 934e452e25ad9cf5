"""The encrypted, content-addressed store of studies.

A study version is cut into chunks, each compressed where it pays, sealed under the study's own
random key and named by the digest of its ciphertext. `store.StudyStore` is what others use; all of
it waits for disks and ciphers, so it is called from worker threads.
"""
