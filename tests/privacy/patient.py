"""A patient whom nobody is called like, and images of them."""

import os
from uuid import uuid4

import numpy as np

from tests.imaging import dicom


def write_study(folder, instances=3, side=48):
    """Write a study with distinctive values everywhere; return its files."""
    folder.mkdir(parents=True)
    uid, series, frame = (f"2.25.{uuid4().int}" for _ in range(3))
    return [
        dicom.minimal(
            folder / f"{number}.dcm",
            sop=f"2.25.{uuid4().int}",
            study=uid,
            pixels=np.frombuffer(os.urandom(2 * side * side), "<u2").reshape(side, side),
            SeriesInstanceUID=series,
            FrameOfReferenceUID=frame,
            PatientName="Zyxquorn^Wilhelmafrieda^Qolumbine",
            PatientID="QXZ-48151623-KLM",
            PatientBirthDate="19370411",
            PatientSex="F",
            OtherPatientIDs="WQK77310945",
            PatientAddress="Ottergrundweg 917, Hundwilstadt",
            PatientComments="Kommt mit dem Klappfahrrad Brunhildis",
            AccessionNumber="ACC77Q1X9Z3",
            StudyID="STU90817263",
            Modality="CT",
            BodyPartExamined="BRAIN",
            InstitutionName="Klinikum Vrxtbergenheim",
            ReferringPhysicianName="Ombrwulk^Thaddeusine",
            OperatorsName="Pfefferquist^Amarantha",
            DeviceSerialNumber="SN9X4417QQ",
            StationName="KWAXROOM-17",
            StudyDescription="CT head Vorgstrulm Kwaxdiagnostik",
            SeriesDescription="axial Jellybrook contrast",
            StudyDate="20230617",
            SeriesDate="20230618",
            StudyTime="134759.246813",
            ContentTime="135802.975310",
        )
        for number in range(instances)
    ]
