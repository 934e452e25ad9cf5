"""DICOMweb for the hospital's own systems: STOW-RS, QIDO-RS and WADO-RS (PS3.18)."""
