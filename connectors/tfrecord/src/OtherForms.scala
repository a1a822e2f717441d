package tfspark.tfrecord

/**
 * Another form in which a record may hold a column. The schema does not describe this form, so without a check the
 * column would be null without any error.
 *
 * @param column index of the column among the decoder's columns
 * @param field  1 for the features or the context, 2 for the feature lists
 * @param entry  name of the entry that the record has instead
 * @param fault  what is wrong, and how to fix it
 */
final case class OtherForm(column: Int, field: Int, entry: String, fault: String)

/** Searches a record for other forms of the columns that it lacks. */
final class OtherForms(forms: Seq[OtherForm], caseSensitive: Boolean) {
  private val (inFeatures, inLists) = forms.partition(_.field == 1)
  private val ofFeatures = new MapScanner(inFeatures.map(_.entry).toArray, caseSensitive)
  private val ofLists = new MapScanner(inLists.map(_.entry).toArray, caseSensitive)

  // For each column: the indices of its forms in `inFeatures` and in `inLists`.
  private val columns = if (forms.isEmpty) 0 else forms.map(_.column).max + 1
  private val featureEntries = (0 until columns).map(entriesOf(inFeatures, _)).toArray
  private val listEntries = (0 until columns).map(entriesOf(inLists, _)).toArray

  private def entriesOf(forms: Seq[OtherForm], column: Int): Array[Int] =
    forms.indices.filter(i => forms(i).column == column).toArray

  /** Must be called before each record. */
  def begin(): Unit = {
    ofFeatures.begin()
    ofLists.begin()
  }

  /** Finds the entries of the features or the feature lists; bytes that are not such a map have no entries. */
  def scan(field: Int, bytes: Array[Byte], start: Int, end: Int): Unit =
    if (if (field == 1) inFeatures.nonEmpty else inLists.nonEmpty)
      try { (if (field == 1) ofFeatures else ofLists).scan(bytes, start, end) }
      catch { case _: RecordFault => () }

  /** Throws a RecordFault if the record has column `i` in another form. */
  def check(i: Int): Unit = if (i < columns) {
    refuse(featureEntries(i), ofFeatures, inFeatures)
    refuse(listEntries(i), ofLists, inLists)
  }

  private def refuse(entries: Array[Int], scanner: MapScanner, forms: Seq[OtherForm]): Unit = {
    var k = 0
    while (k < entries.length) {
      if (scanner.starts(entries(k)) >= 0) throw new RecordFault(forms(entries(k)).fault)
      k += 1
    }
  }
}

object OtherForms {
  private val Nested = "array<array<...>>"

  def ofFeatures(columns: Array[Column], recordType: RecordType): Seq[OtherForm] = {
    val lists = inLists(columns, recordType)
    val sparse = columns.zipWithIndex.collect {
      case (c, i) if Vectors.isVector(c.dataType) =>
        OtherForm(
          i, 1, Vectors.sparseNames(c.name).head, "the record has a sparse vector. Hint: read it with vectors=sparse")
    }
    lists ++ sparse
  }

  def ofSparseVectors(columns: Array[Column], recordType: RecordType): Seq[OtherForm] =
    inLists(columns, recordType) ++ columns.zipWithIndex.map { case (c, i) =>
      OtherForm(i, 1, c.name, "the record has a dense vector. Hint: read it with vectors=dense")
    }

  def ofFeatureLists(columns: Array[Column]): Seq[OtherForm] = columns.zipWithIndex.toSeq.map { case (c, i) =>
    OtherForm(
      i,
      1,
      c.name,
      "expected a feature list, found a feature of the context. Hint: read the column as a single value or an array, " +
        s"not as ${c.dataType.simpleString}")
  }

  private def inLists(columns: Array[Column], recordType: RecordType): Seq[OtherForm] = {
    val fault =
      if (recordType == RecordType.SequenceExample)
        s"expected a feature of the context, found a feature list. Hint: read the column as $Nested"
      else s"expected a feature, found a feature list. Hint: read it with recordType=SequenceExample, as $Nested"
    columns.zipWithIndex.toSeq.map { case (c, i) => OtherForm(i, 2, c.name, fault) }
  }
}
