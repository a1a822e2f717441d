package tfspark.tfrecord

import java.io.BufferedOutputStream

import scala.jdk.CollectionConverters._

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{FileStatus, Path}
import org.apache.hadoop.mapreduce.{Job, TaskAttemptContext}
import org.apache.spark.TaskContext
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.UnsafeProjection
import org.apache.spark.sql.catalyst.util.CompressionCodecs
import org.apache.spark.sql.execution.datasources.{CodecStreams, FileFormat, OutputWriter, OutputWriterFactory, PartitionedFile}
import org.apache.spark.sql.execution.vectorized.{ConstantColumnVector, OnHeapColumnVector}
import org.apache.spark.sql.internal.SQLConf
import org.apache.spark.sql.sources.{DataSourceRegister, Filter}
import org.apache.spark.sql.types.{DataType, StructType}
import org.apache.spark.util.SerializableConfiguration

/**
 * `format("tfrecord")`: TFRecord files as a Spark data source.
 *
 * Spark's file sources bring partition discovery, save modes, the commit protocol, globbing, column pruning, streaming
 * and SQL. What is TensorFlow's own is in the other files of this package.
 */
class TFRecordFileFormat extends FileFormat with DataSourceRegister with Serializable {

  override def shortName(): String = "tfrecord"

  override def toString: String = "TFRecord"

  // Spark reuses an exchange or a cached scan if the formats are equal.
  override def hashCode(): Int = getClass.hashCode()
  override def equals(other: Any): Boolean = other != null && other.getClass == getClass

  override def supportDataType(t: DataType): Boolean = RecordType.isFeature(t) || RecordType.isFeatureList(t)

  override def inferSchema(
      spark: SparkSession,
      options: Map[String, String],
      files: Seq[FileStatus]): Option[StructType] =
    SchemaInference.infer(spark, new TFRecordOptions(options), files)

  /** Finding where a record begins without reading from the file's start can be fooled by TFRecords within records. */
  override def isSplitable(spark: SparkSession, options: Map[String, String], path: Path): Boolean = false

  override def supportBatch(spark: SparkSession, schema: StructType): Boolean = true

  override def vectorTypes(required: StructType, partition: StructType, conf: SQLConf): Option[Seq[String]] =
    Some(
      Seq.fill(required.length)(classOf[OnHeapColumnVector].getName) ++
        Seq.fill(partition.length)(classOf[ConstantColumnVector].getName))

  override def buildReaderWithPartitionValues(
      spark: SparkSession,
      dataSchema: StructType,
      partitionSchema: StructType,
      requiredSchema: StructType,
      filters: Seq[Filter],
      options: Map[String, String],
      hadoopConf: Configuration): PartitionedFile => Iterator[InternalRow] = {
    val parsed = new TFRecordOptions(options)
    if (parsed.recordType == RecordType.ByteArray) parsed.recordType.check(dataSchema)
    else parsed.recordType.check(requiredSchema)
    val inBatches = options.get(FileFormat.OPTION_RETURNING_BATCH).forall(_.toBoolean)
    val conf = spark.sparkContext.broadcast(new SerializableConfiguration(hadoopConf))
    file => TFRecordFileFormat.read(file, conf.value.value, parsed, requiredSchema, partitionSchema, inBatches)
  }

  override def prepareWrite(
      spark: SparkSession,
      job: Job,
      options: Map[String, String],
      dataSchema: StructType): OutputWriterFactory = {
    val parsed = new TFRecordOptions(options)
    parsed.recordType.check(dataSchema)
    CompressionCodecs.setCodecConfiguration(job.getConfiguration, parsed.compression.orNull)
    new TFRecordWriterFactory(parsed.recordType)
  }
}

/** The name under which other connectors are known; the same format. */
class TFRecordsFileFormat extends TFRecordFileFormat {
  override def shortName(): String = "tfrecords"
}

object TFRecordFileFormat {
  private def read(
      file: PartitionedFile,
      conf: Configuration,
      options: TFRecordOptions,
      required: StructType,
      partition: StructType,
      inBatches: Boolean): Iterator[InternalRow] = {
    val path = file.toPath
    val records =
      new RecordReader(Codecs.open(path, conf), path.toString, options.verifyChecksum, options.maxRecordBytes)
    val batches = new BatchReader(records, options, required, partition, file.partitionValues)
    Option(TaskContext.get()).foreach(_.addTaskCompletionListener[Unit](_ => batches.close()))
    if (inBatches) batches.asInstanceOf[Iterator[InternalRow]]
    else {
      val unsafe = UnsafeProjection.create(StructType(required.fields ++ partition.fields))
      batches.flatMap(_.rowIterator().asScala).map(row => unsafe(row))
    }
  }
}

final class TFRecordWriterFactory(recordType: RecordType) extends OutputWriterFactory {
  override def getFileExtension(context: TaskAttemptContext): String =
    ".tfrecord" + CodecStreams.getCompressionExtension(context)

  override def newInstance(path: String, schema: StructType, context: TaskAttemptContext): OutputWriter =
    new TFRecordOutputWriter(path, recordType, schema, context)
}

final class TFRecordOutputWriter(
    val path: String,
    recordType: RecordType,
    schema: StructType,
    context: TaskAttemptContext)
    extends OutputWriter {
  private val encoder = RecordEncoder.of(recordType, schema)
  private val records =
    new RecordWriter(new BufferedOutputStream(CodecStreams.createOutputStream(context, new Path(path)), 1 << 18))

  override def write(row: InternalRow): Unit = {
    encoder.encode(row)
    records.write(encoder.bytes, encoder.start, encoder.end)
  }

  override def close(): Unit = records.close()
}
