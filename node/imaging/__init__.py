"""DICOM: study manifests, commitments, pseudonyms. The only room that imports pydicom."""
