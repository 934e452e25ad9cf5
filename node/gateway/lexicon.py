"""Words that descriptions may be searched by: names of anatomy, techniques and findings.

Descriptions are free text, in which anybody's name may stand. So a word passes only if it is in
this list, or in the one that the operator adds; never because it looks like a word.
"""

import re
from collections.abc import Iterable

WORDS_MAX = 24  # of one study
_TOKEN = re.compile(r"[^\W\d_]{2,32}")

_WORDS = """
abdomen abdominal abscess acetabulum achilles acute adenoma adrenal airway aneurysm angio
angiogram angiography ankle aorta aortic appendicitis appendix arm arterial artery arthritis
arthrogram articular ascites atelectasis axial axilla axillary bariatric barium biliary biopsy
bladder blood bone bowel brain breast bronchial bronchus bypass calcaneus calcification
calcium cancer carcinoma cardiac cardiomyopathy carotid carpal cartilage cavity cerebellum
cerebral cerebrum cervical cervix chest cholangiography cholecystitis chronic cirrhosis
clavicle coccyx colitis colon colonography comparison consolidation contrast contusion
coronal coronary cortex cranial cranium crohn ct cta cyst cystic cystography dementia dental
density diaphragm diastolic diffusion discus dislocation dissection diverticulitis doppler
dorsal duct duodenum dynamic dysplasia echo echocardiography edema effusion elbow embolism
emergency emphysema endoscopy epilepsy erosion esophagus extremity eye face facial femoral
femur fetal fibroid fibrosis fibula finger fistula flair follow foot forearm fracture fusion
gadolinium gallbladder gastric gated glioma gradient graft hand head heart hematoma hemorrhage
hepatic hernia hip humerus hydrocephalus hydronephrosis hyperplasia iliac implant infarct
infarction infection inflammation injury intensity intervention intestine intracranial
inversion ischemia ischemic iv joint kidney knee laceration larynx lateral leg lesion leukemia
ligament limb liver localizer lower lumbar lung lymph lymphoma mammography mammogram mandible
mass mastectomy maxilla mediastinum melanoma meniscus meningioma metastasis metastases mri mra
multiple musculoskeletal muscle myelography myeloma myocardial nasal neck necrosis neoplasm
nephrostomy nerve neuro nodule noncontrast nuclear oblique obstruction oncology optic oral
orbit orthopedic osteoarthritis osteoporosis ovarian ovary pancreas pancreatic pancreatitis
panoramic parotid patella pediatric pelvic pelvis perfusion perianal pericardial perinatal
peripheral pet phase pituitary placenta plaque pleura pleural plexus pneumonia pneumothorax
polyp portal postoperative pregnancy preoperative prostate protocol proton pulmonary radius
reconstruction rectal rectum reflux renal resection rib ribs rotator routine runoff sacroiliac
sacrum sagittal scan scapula sclerosis scoliosis scout screening seizure sella septum series
shoulder sinus sinuses skeletal skull soft spectroscopy spinal spine spleen splenic staging
stenosis stent sternum stomach stroke subarachnoid subdural suppressed surgery survey systolic
tear temporal temporomandibular tendon testicular testis thickness thoracic thorax thrombosis
thymus thyroid tibia tissue toe tomography tongue tonsil trachea transplant trauma trochanter
tuberculosis tumor tumour ulcer ulna ultrasound upper ureter urethra urinary urography uterus
vagina valve varices vascular vein venography venous ventricle ventricular vertebra vertebral
vessel view views volume weighted whole wrist xray
"""
LEXICON = frozenset(_WORDS.split())


def words_in(text: str, added: Iterable[str] = ()) -> set[str]:
    """Return the listed words of a description, in small letters."""
    known = LEXICON.union(added)
    return {word for word in _TOKEN.findall(text.casefold()) if word in known}
