package tfspark.tfrecord

import org.apache.hadoop.fs.Path
import org.apache.hadoop.io.{BytesWritable, NullWritable}
import org.apache.hadoop.mapreduce.{InputSplit, JobContext, RecordReader => HadoopReader, RecordWriter => HadoopWriter}
import org.apache.hadoop.mapreduce.TaskAttemptContext
import org.apache.hadoop.mapreduce.lib.input.{FileInputFormat, FileSplit}
import org.apache.hadoop.mapreduce.lib.output.FileOutputFormat

/**
 * Reads TFRecord files for MapReduce and `sc.newAPIHadoopFile`: the key is the record, the value is null.
 *
 * The options are those of the data source, set in the configuration with the prefix `tfspark.tfrecord.`, e.g.
 * `tfspark.tfrecord.verifyChecksum`. With `mode=DROPMALFORMED` or `PERMISSIVE`, records whose data does not match its
 * checksum are left out.
 */
class TFRecordInputFormat extends FileInputFormat[BytesWritable, NullWritable] {

  override def isSplitable(context: JobContext, path: Path): Boolean =
    TFRecordInputFormat.options(context).splitFiles && Codecs.of(path, context.getConfiguration) == null

  override def createRecordReader(
      split: InputSplit,
      context: TaskAttemptContext): HadoopReader[BytesWritable, NullWritable] = new TFRecordHadoopReader
}

object TFRecordInputFormat {
  private val Prefix = "tfspark.tfrecord."

  def options(context: JobContext): TFRecordOptions = {
    val given = context.getConfiguration.getPropsWithPrefix(Prefix)
    val map = Map.newBuilder[String, String]
    given.forEach((k, v) => map += k -> v)
    new TFRecordOptions(map.result())
  }
}

final class TFRecordHadoopReader extends HadoopReader[BytesWritable, NullWritable] {
  private var records: RecordReader = null
  private var atEnd: () => Unit = null
  private var split: FileSplit = null
  private val key = new BytesWritable

  override def initialize(given: InputSplit, context: TaskAttemptContext): Unit = {
    split = given.asInstanceOf[FileSplit]
    val conf = context.getConfiguration
    val size = split.getPath.getFileSystem(conf).getFileStatus(split.getPath).getLen
    val part = new FilePart(split.getPath, conf, split.getStart, split.getStart + split.getLength, size)
    part.open(TFRecordInputFormat.options(context)).foreach { case (reader, check) =>
      records = reader
      atEnd = check
    }
  }

  override def nextKeyValue(): Boolean = {
    if (records == null) return false
    // A record that does not match its checksum is not returned as a key; with FAILFAST it is an error.
    var more = records.next()
    while (more && !records.intact) more = records.next()
    if (more) {
      key.set(records.bytes, records.start, records.end - records.start)
      true
    } else {
      atEnd()
      close()
      false
    }
  }

  override def getCurrentKey: BytesWritable = key
  override def getCurrentValue: NullWritable = NullWritable.get()

  override def getProgress: Float =
    if (records == null || split.getLength == 0) 1f
    else math.min(1f, (records.offset - split.getStart).toFloat / split.getLength)

  override def close(): Unit = if (records != null) {
    records.close()
    records = null
  }
}

/** Writes the keys, which are whole records, to TFRecord files; values are ignored. */
class TFRecordOutputFormat extends FileOutputFormat[BytesWritable, NullWritable] {
  override def getRecordWriter(context: TaskAttemptContext): HadoopWriter[BytesWritable, NullWritable] = {
    val path = getDefaultWorkFile(context, ".tfrecord" + Codecs.extension(context))
    val records = new RecordWriter(Codecs.create(path, context), path.toString)
    new HadoopWriter[BytesWritable, NullWritable] {
      override def write(key: BytesWritable, value: NullWritable): Unit =
        records.write { sink =>
          sink.ensure(key.getLength)
          sink.put(key.getBytes, 0, key.getLength)
        }
      override def close(context: TaskAttemptContext): Unit = records.close()
    }
  }
}
